"""The networks of the runtime benchmark and the runtimes compared: in turns, each alone while it is timed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import sparsify

from ..timing import alternate

LAYOUTS = ("torch, contiguous", "torch, channels last")
TURN = 0.2  # seconds of a turn, of at least one pass
MOST = 100  # passes of a turn
PAUSE = 0.1  # seconds: threads of the previous runtime may still spin
CLOSE = 1e-4  # of the largest output

Turn = Callable[[int], list[float]]  # passes -> seconds of each


@dataclass(frozen=True)
class Cell:
    """A network of one sparsity on one batch of images."""

    network: str
    batch: int
    sparsity: float
    threads: int


def network(spec: str, sparsity: float) -> nn.Module:
    """Return a plain model of random weights, with that fraction of zeros in each layer but the first and last.

    Scales, shifts and statistics of batch norms are moved off 1 and 0.
    """
    torch.manual_seed(0)
    model = sparsify.build_model(spec).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
    sparsify.convert(model, ignore=["first", "last"])
    settings = {"criterion": "magnitude", "scope": "layer", "sparsity": sparsity}
    with warnings.catch_warnings():
        # At 98 % whole filters may be zero.
        warnings.simplefilter("ignore")
        sparsify.Pruner(model, settings, total_steps=0).start()
    return sparsify.fold(model).eval().requires_grad_(False)


def images(spec: str, batch: int) -> Tensor:
    """Return images of noise of a network's input size."""
    size = 32 if spec.startswith("cifar:") else 224
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def multiply_adds(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return the multiply-adds of one pass: those with weights other than 0, and all."""
    found = [0, 0]

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight: Any = module.weight
        positions = output.numel() // weight.shape[0]
        found[0] += positions * int((weight != 0).sum())
        found[1] += positions * weight.numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found[0], found[1]


def turn_of(run: Callable[[], Any]) -> Turn:
    """Return a function that times passes in this process, except the first."""

    def turn(passes: int) -> list[float]:
        found = []
        for _ in range(passes):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
        return found

    return turn


@contextmanager
def contenders(cell: Cell, deepsparse: str | None) -> Iterator[tuple[dict[str, Turn], dict[str, Any]]]:
    """Yield the turns of each runtime for a cell, and facts about the cell; raises RuntimeError if outputs differ.

    The engine and PyTorch run the module, the others one ONNX file of it, whose batch norms are folded.
    """
    torch.set_num_threads(cell.threads)
    model, x = network(cell.network, cell.sparsity), images(cell.network, cell.batch)
    kept, whole = multiply_adds(model, x)
    with torch.no_grad(), ExitStack() as stack:
        expected = model(x)
        folder = Path(stack.enter_context(TemporaryDirectory()))
        # Tune again: a cached strategy may no longer be the fastest.
        stack.enter_context(mock.patch.dict(os.environ, {"SPARSIFY_CACHE": str(folder)}))
        engine = sparsify.compile(model, x, threads=cell.threads)
        same("the engine", engine(x), expected)
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        there = x.contiguous(memory_format=torch.channels_last)
        turns = {
            "engine": turn_of(partial(engine, x)),
            **dict(zip(LAYOUTS, (turn_of(lambda: model(x)), turn_of(lambda: other(there))), strict=True)),
        }
        export(model, x, folder / "model.onnx")
        turns["onnxruntime"] = onnxruntime_turn(folder / "model.onnx", x, expected, cell.threads)
        if deepsparse is not None:
            worker = stack.enter_context(deepsparse_turn(deepsparse, folder, x, expected, cell.threads))
            turns["deepsparse"] = worker
        strategy = next(iter(engine.strategies.values()))
        yield turns, {"way": str(strategy), "multiply_adds": kept, "all_multiply_adds": whole}


def same(who: str, found: Tensor, expected: Tensor) -> None:
    """Raise RuntimeError unless these outputs equal PyTorch's."""
    apart = float((found - expected).abs().max() / expected.abs().max())
    if not apart <= CLOSE:
        raise RuntimeError(f"{who}: the outputs differ by {apart:.1e} of the largest")


def export(model: nn.Module, x: Tensor, path: Path) -> None:
    """Write a graph of opset 13, the last that DeepSparse reads; only torch's older exporter writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=13, input_names=["x"])


def onnxruntime_turn(path: Path, x: Tensor, expected: Tensor, threads: int) -> Turn:
    """Return ONNX Runtime's turn on that many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = partial(session.run, None, {"x": x.numpy()})
    same("ONNX Runtime", torch.from_numpy(run()[0]), expected)
    return turn_of(run)


@contextmanager
def deepsparse_turn(python: str, folder: Path, x: Tensor, expected: Tensor, threads: int) -> Iterator[Turn]:
    """Yield DeepSparse's turn, in its own process, which waits between turns."""
    np.save(folder / "x.npy", x.numpy())
    files = [str(folder / name) for name in ("model.onnx", "x.npy", "y.npy")]
    # Isolated: its environment must not import the scripts beside that file.
    command = [python, "-I", str(Path(__file__).with_name("deepsparse_process.py")), *files, str(len(x)), str(threads)]
    told = {**os.environ, "NM_DISABLE_TELEMETRY": "1"}
    with (
        (folder / "errors.txt").open("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=told
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        source, target = process.stdout, process.stdin

        def answer() -> Any:
            line = source.readline()
            if not line:
                raise RuntimeError(f"DeepSparse: {Path(errors.name).read_text()[-500:]}")
            return json.loads(line)

        def turn(passes: int) -> list[float]:
            target.write(f"{passes}\n")
            target.flush()
            seconds: list[float] = answer()
            return seconds

        answer()
        same("DeepSparse", torch.from_numpy(np.load(files[2])), expected)
        yield turn


def take_turns(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Return the median seconds of every turn for each, without a turn's first pass."""
    passes = {name: max(1, min(MOST, int(TURN / min(turn(2))))) for name, turn in turns.items()}

    def one(name: str) -> float:
        time.sleep(PAUSE)
        return median(turns[name](passes[name] + 1)[1:])

    return alternate({name: partial(one, name) for name in turns}, rounds)
