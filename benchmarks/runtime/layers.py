"""The engine's time per instruction of a network, on one thread, against the machine's limits.

    python -m benchmarks.runtime.layers [--network cifar:vgg19_bn] [--images 16] [--sparsity 0.9]

Records a section of results.md. Instructions come in the program's order, so that caches hold what they hold in a real
pass; each has a call of its own. Rates: multiplications and additions with weights that are not 0; what registers load
of inputs; planes read and written, each once; code, or offsets, and weights, each once.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

import numpy as np
import torch

import sparsify
from sparsify.runtime.call_inputs import flattened
from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.lowering.packed_rows import reads_of
from sparsify.runtime.program.assemble import Segment
from sparsify.runtime.program.describe import lines
from sparsify.runtime.program.plan import Plan, alone, arrays_of, make_plan, memory

from ..record import environment, record
from .contenders import images, network

ROUNDS = 12
LEAST = 2e-4  # seconds: shorter ones share one row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime.layers", description=__doc__)
    parser.add_argument("--network", default="cifar:vgg19_bn")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--sparsity", type=float, default=0.9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, x = network(given.network, given.sparsity), images(given.network, given.images)
    call = flattened(sparsify.Inputs(x))
    plan = make_plan(model, call.tensors, call.call)
    seconds = timed(plan, [x, torch.empty(model(x).shape)])
    rows = [row(one, s) for one, s in zip(plan.instructions, seconds, strict=True) if isinstance(one, Instruction)]
    named = [f"| {line.name} {text}" for line, text in zip(lines(plan, model), rows, strict=True)]
    shown = [text for text, s in zip(named, seconds, strict=True) if s >= LEAST]
    rest = sum(s for s in seconds if s < LEAST)
    head = (
        "| layer | how | output | kept | ms | GFLOP/s | loaded, GB/s | planes, GB/s | code and weights, GB/s |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    about = f"{given.network}, {given.images} images, {given.sparsity:.0%}, one thread; {1e3 * sum(seconds):.2f} ms"
    text = "\n".join([head, *shown, f"| all shorter ones | | | | {1e3 * rest:.2f} | | | | |"])
    name = f"runtime.layers {given.network} {given.sparsity:.0%}"
    record(name, f"{environment('torch', 'numba', threads=1)}\n\n{about}\n\n{text}")


def timed(plan: Plan, tensors: list[torch.Tensor]) -> list[float]:
    """Return the median seconds of each instruction of a program without calls of torch."""
    [segment] = plan.program.parts
    assert isinstance(segment, Segment)
    buffers = memory(plan.program.floats)
    addresses = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    ones = [replace(segment, table=segment.table[k : k + 1]) for k in range(len(segment.table))]
    found: list[list[float]] = [[] for _ in ones]
    for _ in range(ROUNDS):
        for one, seconds in zip(ones, found, strict=True):
            arrays = arrays_of(plan.program, one, buffers, addresses)
            started = time.perf_counter()
            alone(arrays)
            seconds.append(time.perf_counter() - started)
    return [median(seconds[2:]) for seconds in found]


def row(one: Instruction, seconds: float) -> str:
    """Return what one instruction does and at what rates."""
    planes, source = one.planes, one.source
    size = f"{planes.channels}x{planes.height}x{planes.width}"
    moved = 4 * (planes.floats + (source.floats if source else 0)) / seconds / 1e9
    start = f"| {one.opcode.description} | {size} |"
    if one.rows is None:
        return f"{start} | {1e3 * seconds:.2f} | | | {moved:.0f} | |"
    pixels = planes.height * planes.row
    kept = int((one.rows.values != 0).sum())
    count = len(one.rows.offsets)
    generated = one.opcode == Opcode.CONVOLVE_GENERATED
    reads = reads_of(one.rows) if generated else count
    fetched = 11 * count + 10 * reads if generated else 4 * (count + len(one.rows.values))
    rates = [2 * kept * pixels, 4 * reads * pixels]
    flops, loaded = (value / seconds / 1e9 for value in rates)
    return (
        f"{start} {kept} | {1e3 * seconds:.2f} | {flops:.0f} | {loaded:.0f} | {moved:.0f} | "
        f"{fetched / seconds / 1e9:.1f} |"
    )


if __name__ == "__main__":
    main()
