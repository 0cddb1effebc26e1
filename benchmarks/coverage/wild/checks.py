"""One model's row of the `wild` table: "ok" or the reason by stage, and figures."""

from __future__ import annotations

import copy
import math
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparsify
from sparsify.calls import Inputs, run, tensors_in
from sparsify.relative_error import relative_error
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording.context import all_double
from sparsify.surgery.shrink.shrink import shrink

from ...record import Row
from ..checks import in_one_line
from .example import Wild
from .models import ALL

STAGES = ("convert", "verify", "exact", "save", "units", "engine", "onnx", "pt2")
SPARSITY, UNITS = "0.7", "0.5"
EXACT, CLOSE = 1e-9, 1e-4  # largest relative difference in float64, and of float32 results of other kernels
_BEFORE = ("convert", "exact")  # stages that later ones rest on
_FREE = ("Embedding", "ignored")


class _Gap(Exception):
    """A failed check, in words."""


def check(name: str, seconds: float, wanted: Collection[str] = STAGES) -> Row:
    """Return the row of one model: {stage: "ok" or what went wrong}, with figures; of the `wanted` stages."""
    row: Row = {"model": name, "verdict": "done"}
    try:
        wild = _built(name)
    except Exception as error:  # noqa: BLE001 - whatever a package raises
        return row | {"verdict": "not built", "problems": [in_one_line(error)]}
    row["parameters"] = sum(p.numel() for p in wild.model.parameters())
    masked = copy.deepcopy(wild)
    with TemporaryDirectory() as folder:
        stages: dict[str, Callable[[], None]] = {
            "convert": lambda: _convert(masked, row),
            "verify": lambda: _verify(masked),
            "exact": lambda: _exact(masked, row),
            "save": lambda: _save(masked, name, Path(folder)),
            "units": lambda: _units(wild, row),
            "engine": lambda: _engine(masked, row),
            "onnx": lambda: _export(masked, Path(folder), "onnx"),
            "pt2": lambda: _export(masked, Path(folder), "pt2"),
        }
        for stage, work in stages.items():
            if stage not in (*wanted, *_BEFORE):
                continue
            row[stage] = _outcome(work, seconds)
            if stage == "convert" and row[stage] != "ok":
                break
    return row


def _built(name: str) -> Wild:
    torch.manual_seed(0)
    wild = ALL[name]()
    wild.model.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wild.model.parameters():  # norms off 1 and 0, whatever they begin with
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wild


def _outcome(work: Callable[[], None], seconds: float) -> str:
    try:
        with _limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except MemoryError:
        raise
    except _Gap as gap:
        return str(gap)
    except Exception as error:  # noqa: BLE001 - any error of these is what this looks for
        return in_one_line(error)
    return "ok"


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not finished in {seconds:.0f} s of the processor")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # whatever else runs on the machine
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _convert(wild: Wild, row: Row) -> None:
    report = sparsify.convert(wild.model)
    row["masked"] = len(report.masked)
    row["skipped"] = {name: why for name, why in report.skipped.items() if not why.startswith(_FREE)}
    if not report.masked:
        raise _Gap("no weight got a mask")


def _verify(wild: Wild) -> None:
    proof = sparsify.verify(wild.model, copy.deepcopy(wild.example))
    if not proof.ok:
        raise _Gap("; ".join(proof.problems)[:240] or str(proof))


def _exact(wild: Wild, row: Row) -> None:
    sparsify.Pruner(wild.model, {"sparsity": SPARSITY, "scope": "layer", "schedule": "one_shot"}, total_steps=1).start()
    for name, mask in sparsify.get_masks(wild.model).items():
        removed, due = int((~mask).sum()), math.floor(mask.numel() * 7 / 10)
        if removed != due:
            raise _Gap(f"{name}: {removed} of {mask.numel()} removed, {due} were due")


def _save(wild: Wild, name: str, folder: Path) -> None:
    sparsify.save(wild.model, folder / "model.safetensors")
    again = sparsify.load(folder / "model.safetensors", _built(name).model)
    again.eval()
    first, second = _answers(sparsify.fold(wild.model), wild.example), _answers(again, wild.example)
    if not all(map(torch.equal, first, second)):
        raise _Gap("a model loaded from the file computes something else")


def _answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(0)
    doubles = next(model.parameters()).dtype == torch.float64
    with torch.no_grad(), all_double() if doubles else nullcontext():
        return [x for x in tensors_in(run(model, copy.deepcopy(inputs))) if x.is_floating_point()]


def _doubled(inputs: Inputs) -> Inputs:
    changed: Inputs = pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    return changed


def _units(wild: Wild, row: Row) -> None:
    """Remove half of the units of each layer, shrink, and compare for another size and batch in float64."""
    model = copy.deepcopy(wild.model)
    channels = analyse(model, wild.example)
    row["groups"], row["barriers"] = channels.groups, list(channels.barriers)
    sparsify.convert(model)
    settings = {"granularity": "unit", "scope": "layer", "sparsity": UNITS}
    pruner = sparsify.Pruner(model, settings, total_steps=1, example_input=wild.example)
    pruner.start()
    row["unit_notes"] = list(pruner.report().notes)
    with all_double():
        report = shrink(model.double(), _doubled(wild.example))
    pruned = sparsify.fold(model)
    row |= {
        "gone": report.pruned,
        "after": sum(p.numel() for p in report.model.parameters()),
        "kept": list(report.kept),
    }
    for given in (_doubled(wild.example), _doubled(wild.other)):
        before, after = _answers(pruned, given), _answers(report.model, given)
        if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
            raise _Gap("the shrunk model's outputs have other shapes")
        worst = relative_error(after, before)
        if not worst <= EXACT:
            raise _Gap(f"the shrunk model's outputs differ by {worst:.1e} in float64")
    if not report.pruned:
        raise _Gap("nothing went")


def _engine(wild: Wild, row: Row) -> None:
    plain = sparsify.fold(wild.model)
    engine = sparsify.compile(plain, wild.example, threads=1)
    torch.manual_seed(0)  # as for the outputs below
    with torch.no_grad():
        found = [x for x in tensors_in(run(engine, copy.deepcopy(wild.example))) if x.is_floating_point()]
    row["strategy"] = [str(one.kind) for one in engine.strategies.values()]
    error = relative_error(found, _answers(plain, wild.example))
    if not error <= CLOSE:
        raise _Gap(f"the engine's outputs differ by {error:.1e}")
    lone = [line for line in str(engine).splitlines() if "PyTorch" in line]
    if not engine.strategies:
        raise _Gap(f"left to PyTorch: {lone[0].strip() if lone else ''}"[:240])
    (strategy,) = engine.strategies.values()
    if strategy.kind == "torch" and not strategy.seconds:
        raise _Gap(f"left to PyTorch: {strategy.why}"[:240])


def _export(wild: Wild, folder: Path, layout: str) -> None:
    example = copy.deepcopy(wild.example)
    batches = {len(x) for x in tensors_in(list(example.args)) + tensors_in(dict(example.kwargs)) if x.dim()}
    free: dict[str, Any] | None = None if len(batches) < 2 else {}  # nodes and edges of a graph: all sizes are fixed
    sparsify.save(wild.model, folder / f"model.{layout}", format=layout, example_input=example, dynamic_shapes=free)
