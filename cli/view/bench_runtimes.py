"""What `sparsify bench` times: the same model on the engine, on PyTorch and on ONNX Runtime, in turns."""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from .show import plain_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsify.runtime.engine import Engine

ENGINE, TORCH, LAST = "sparsify engine", "torch, contiguous", "torch, channels last"
SHRUNK = "shrunk"  # the same two layouts of PyTorch, without dead channels
TURN = 0.05  # seconds of one turn, at least one pass
MOST = 50  # passes of one turn
WIDE = 0.2  # of the median: a larger distance of the quartiles is reported
PAUSE = 0.05  # seconds: threads of the runtime before may still be busy-waiting


@dataclass(frozen=True)
class Runtime:
    """A runtime to time: `run` is one forward pass, `seconds` the time that its preparation took."""

    name: str
    run: Callable[[], object]
    seconds: float


def ready(
    model: nn.Module, x: Tensor, threads: int, skip: Sequence[str], small: nn.Module | None = None
) -> tuple[Engine, tuple[Runtime, ...], tuple[str, ...]]:
    """Return the engine, all runtimes that can run this plain model here, and for each other a line with the reason.

    `small` is the model without its dead channels, if there is one; PyTorch runs it in both layouts.
    """
    import sparsify

    found: list[Runtime] = []
    notes: list[str] = []
    started = time.perf_counter()
    with _doing("compiling the engine"), _nothing_remembered():
        engine = sparsify.compile(model, x, threads=threads)
    found.append(Runtime(ENGINE, partial(engine, x), time.perf_counter() - started))
    others = [(name, make, model) for name, make in _OTHERS.items()]
    if small is not None:
        others += [(name.replace("torch", SHRUNK), _OTHERS[name], small) for name in (TORCH, LAST)]
    for name, make, one in others:
        if name in skip:
            notes.append(f"{name}: left out")
            continue
        started = time.perf_counter()
        try:
            with _doing(f"getting {name} ready"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other tools warn of their internals
                run = make(one, x, threads)
                run()
        except Exception as error:  # noqa: BLE001 - whatever another runtime cannot do becomes one line
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            notes.append(f"{name}: does not run here: {lines[0][:200]}")
        else:
            found.append(Runtime(name, run, time.perf_counter() - started))
    return engine, tuple(found), tuple(notes)


def _doing(what: str) -> Status:
    """Return a context that shows `what` on a terminal."""
    return Console(stderr=True).status(f"{what} …")


@contextmanager
def _nothing_remembered() -> Iterator[None]:
    """Use an empty cache, so that every strategy is timed."""
    before = os.environ.get("SPARSIFY_CACHE")
    with TemporaryDirectory() as folder:
        os.environ["SPARSIFY_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["SPARSIFY_CACHE"]
            if before is not None:
                os.environ["SPARSIFY_CACHE"] = before


def _torch(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
    return _pass(model, x)


def _channels_last(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
    import torch

    if x.dim() != 4:
        raise ValueError("only images have that layout")
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return _pass(other, x.contiguous(memory_format=torch.channels_last))


def _compiled(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
    import torch

    return _pass(torch.compile(model), x)


def _pass(model: Callable[[Tensor], Any], x: Tensor) -> Callable[[], object]:
    import torch

    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def _onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
    import sparsify

    if find_spec("onnxruntime") is None:
        raise ImportError("it is not installed: pip install onnx onnxscript onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        sparsify.save(model, path, format="onnx", example_input=x)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return partial(session.run, None, given)


_OTHERS: dict[str, Callable[[nn.Module, Tensor, int], Callable[[], object]]] = {
    TORCH: _torch,
    LAST: _channels_last,
    "torch.compile": _compiled,
    "onnxruntime": _onnxruntime,
}


def alternated(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one pass in each round, the median of a turn. Every other round is in reverse order."""
    passes = {name: max(1, min(MOST, int(TURN / _seconds(run)))) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs) if index % 2 == 0 else list(runs)[::-1]:
            time.sleep(PAUSE)
            if passes[name] > 1:
                runs[name]()  # fills the caches after the runtime before
            found[name].append(median(_seconds(runs[name]) for _ in range(passes[name])))
    return found


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, sys.float_info.min)


def result_table(runtimes: Sequence[Runtime], seconds: Mapping[str, Sequence[float]], images: int) -> Table:
    """Return the table of medians and quartiles; `x torch` is how many times as fast as torch's better layout."""
    table = plain_table("runtime", "ms", "quartiles", "images/s", "x torch", "ready in")
    layouts = [name for name in (TORCH, LAST) if name in seconds]
    best = min(layouts, key=lambda name: median(seconds[name]), default=None)
    for runtime in runtimes:
        own = seconds[runtime.name]
        low, middle, high = (1e3 * value for value in quantiles(own, n=4, method="inclusive"))
        ratio = "-"
        if best is not None:
            ratio = f"{median(torch / one for torch, one in zip(seconds[best], own, strict=True)):.2f}"
        rate = f"{1e3 * images / middle:,.{0 if 1e3 * images / middle >= 100 else 1}f}"
        spread = f"{figures(low)} - {figures(high)}"
        table.add_row(runtime.name, figures(middle), spread, rate, ratio, f"{runtime.seconds:.1f} s")
    return table


def spread_lines(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a line for each runtime whose quartiles are so far apart that its median means little."""
    lines = []
    for name, own in seconds.items():
        low, middle, high = quantiles(own, n=4, method="inclusive")
        if high - low > WIDE * middle:
            share = f"{100 * (high - low) / middle:.0f} %"
            lines.append(
                f"{name}: the quartiles are {share} of the median apart: something else ran; try more --rounds"
            )
    return lines


def figures(milliseconds: float) -> str:
    """Return a number with three significant figures, or all before the point."""
    return f"{milliseconds:,.{2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f}"
