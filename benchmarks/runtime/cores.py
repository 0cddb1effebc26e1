"""What the engine would take on 16 and 64 cores, from measurements of one core; checked on as many as there are.

    python -m benchmarks.runtime.cores [--rounds 7] [--cores 16 64]

Records a section of results.md. A paper model, of two strategies:

- *chunks*: each thread runs its own images through the network. An instruction takes the time that one thread takes
  alone, or the time in which the memory can deliver the planes of all threads, if together they exceed the third cache.
- *shared*: all threads share each instruction of one image. It takes its time on one thread divided by the threads, and
  a barrier, whose time is what the calibrating network takes longer on two threads than half of its time on one. It
  grows with the number of threads, since each arrival moves one cache line to another core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

import sparsify
from sparsify.runtime.call_inputs import flattened
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.program.plan import make_plan

from ..record import environment, record
from ..timing import alternate
from .contenders import images, network
from .layers import timed

SPARSITY = 0.9
CHUNK = 16
CALIBRATION = "cifar:resnet32"
CHECKED = ("cifar:vgg19_bn", "timm:resnet50")
CACHE = 32 * 2**20  # bytes of the third cache, which COMPLEX cores of a Zen 4 EPYC share
COMPLEX = 8
SOCKET = 0.8 * 12 * 4.8e9 * 8  # bytes per second: 12 channels of DDR5-4800 of 8 bytes, of which 80 % are usual


class Step(NamedTuple):
    """An instruction's seconds on one thread, and the bytes of planes that it reads and writes, each once."""

    seconds: float
    planes: int


def steps(spec: str, batch: int) -> list[Step]:
    """Return the steps of a network, measured on one thread."""
    model, x = network(spec, SPARSITY), images(spec, batch)
    call = flattened(sparsify.Inputs(x))
    plan = make_plan(model, call.tensors, call.call)
    seconds = timed(plan, [x, torch.empty(model(x).shape)])
    ones = [one for one in plan.instructions if isinstance(one, Instruction)]
    return [
        Step(s, 4 * (one.planes.floats + (one.source.floats if one.source else 0)))
        for one, s in zip(ones, seconds, strict=True)
    ]


def in_chunks(found: list[Step], threads: int, bandwidth: float) -> float:
    """Return the seconds in which each of so many threads runs one chunk; `bandwidth` is of the memory, for all."""
    beside = min(threads, COMPLEX)
    return sum(
        max(step.seconds, threads * step.planes / bandwidth if beside * step.planes > CACHE else 0) for step in found
    )


def shared(found: list[Step], threads: int, barrier: float) -> float:
    """Return the seconds in which so many threads run one image; `barrier` is that of two threads."""
    whole = sum(step.seconds for step in found)
    return whole if threads == 1 else whole / threads + len(found) * barrier * threads / 2


def measured(spec: str, batches: dict[int, int], rounds: int) -> dict[int, float]:
    """Return the engine's median seconds by number of threads, for a batch of each."""
    model = network(spec, SPARSITY)
    turns = {}
    for threads, batch in batches.items():
        x = images(spec, batch)
        turns[str(threads)] = partial(_seconds, sparsify.compile(model, x, threads=threads), x)
    found = alternate(turns, rounds, times=3)
    return {threads: median(found[str(threads)]) for threads in batches}


def _seconds(engine: Callable[[torch.Tensor], object], x: torch.Tensor) -> float:
    engine(x)
    started = time.perf_counter()
    for _ in range(5):
        engine(x)
    return (time.perf_counter() - started) / 5


def read_rate(floats: int = 2**26) -> float:
    """Return the bytes per second that one thread reads from memory, the most of five passes over 256 MiB."""
    array = np.ones(floats, dtype=np.float32)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        array.max()
        best = max(best, array.nbytes / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime.cores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, nargs="+", default=[16, 64])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rate = read_rate()
    one = measured(CALIBRATION, {1: 1, 2: 1}, given.rounds)
    count = len(steps(CALIBRATION, 1))
    barrier = max(one[2] - one[1] / 2, 0) / count
    lines = [
        f"Paper model, 90 % sparse networks. One thread reads {rate / 1e9:.0f} GB/s from memory; a socket is taken",
        f"to give {SOCKET / 1e9:.0f}, and {COMPLEX} cores to share {CACHE >> 20} MiB of cache.",
        f"The barrier of two threads takes {1e6 * barrier:.2f} µs, from {CALIBRATION} on one image",
        f"({1e3 * one[1]:.3f} ms on one thread,",
        f"{1e3 * one[2]:.3f} on two, {count} instructions), and grows with the number of threads.",
        "",
        "| network | images | threads | model, ms | measured, ms | model / measured | images/s by the model "
        "| of linear |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for spec in CHECKED:
        chunk, alone = steps(spec, CHUNK), steps(spec, 1)
        batches = measured(spec, {1: CHUNK, 2: 2 * CHUNK}, given.rounds)
        single = measured(spec, {1: 1, 2: 1}, given.rounds)
        for threads in (1, 2, *given.cores):
            bandwidth = min(threads * rate, SOCKET)
            lines.append(row(spec, threads * CHUNK, threads, in_chunks(chunk, threads, bandwidth), batches, chunk))
        for threads in (1, 2, *given.cores):
            lines.append(row(spec, 1, threads, shared(alone, threads, barrier), single, alone))
    about = environment("torch", "numba", "timm")
    record("runtime.cores", f"{about}\n\n" + "\n".join(lines))


def row(spec: str, batch: int, threads: int, model: float, found: dict[int, float], of: list[Step]) -> str:
    """Return a line of the table: the model's milliseconds beside the measured ones, where there are."""
    real = found.get(threads)
    checks = "| " if real is None else f"{1e3 * real:.3g} | {model / real:.2f}"
    linear = sum(step.seconds for step in of) / model / (1 if batch > 1 else threads)
    return f"| {spec} | {batch} | {threads} | {1e3 * model:.3g} | {checks} | {batch / model:,.0f} | {linear:.0%} |"


if __name__ == "__main__":
    main()
