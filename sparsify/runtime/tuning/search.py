"""Autotuning: the fastest strategy for inputs of one shape. Each is checked against the model, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from ...errors import SparsifyError
from ...relative_error import relative_error
from ..kernel_errors import PASSED, Fault, KernelError, TraceError, one_line
from ..kernels.opcodes import Opcode
from ..lowering.conv_linear import WEIGHTED
from ..lowering.ir import Instruction
from ..program.assemble import Segment, assemble
from ..program.plan import Plan, alone, arrays_of, memory

TOLERANCE = 1e-5  # of the largest output
CHUNKS = (1, 4, 8, 16)  # images
ENOUGH = 0.2  # seconds of timing for each strategy
TURN = 0.05  # seconds, so that most of a turn comes after the threads of the strategy before have stopped polling
_LEAST, _MOST = 3, 50  # rounds


@dataclass(frozen=True)
class Strategy:
    """How inputs of one shape are run.

    `kind` is "torch", "split" (all threads work on all images) or "chunks" (a thread works on `images` at a time).
    `dense` has the nodes of layers that PyTorch runs although there is a kernel. `why` is the reason for "torch",
    `seconds` the time of every strategy that was timed.
    """

    kind: str
    images: int = 0
    dense: frozenset[str] = frozenset()
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        text = {
            "torch": "PyTorch",
            "split": "all threads on all images",
            "chunks": f"each thread on {self.images} image{'s' if self.images > 1 else ''} at a time",
        }[self.kind]
        left = len(self.dense)
        return text + (f", {left} layer{'s' if left > 1 else ''} left to PyTorch" if left else "")


TORCH = Strategy("torch")
Run = Callable[[Strategy], list[Any]]


def candidates(images: int, single: bool, threads: int) -> list[Strategy]:
    """Return the strategies for `images` independent images (1 if they are not); `single`: the batch has one image."""
    largest = -(-images // threads)
    chunks = sorted({min(largest, size) for size in CHUNKS}, reverse=True) if images > 1 else []
    # One thread may be faster than several with a barrier after every instruction.
    alone = [Strategy("chunks", 1)] if single and threads > 1 else []
    return [*(Strategy("chunks", size) for size in chunks), Strategy("split"), *alone]


def autotune(
    run: Run, plan: Callable[[Strategy], Plan], strategies: Iterable[Strategy], tune: bool, faults: list[Fault]
) -> Strategy:
    """Return the fastest of PyTorch and the strategies with the same outputs.

    `run` returns the flat outputs of a strategy, `plan` its plan. Without `tune` the first one with the right outputs
    is returned. The faults of the others are appended to `faults`.
    """
    expected = run(TORCH)
    right: list[Strategy] = []
    for strategy in strategies:
        fault = check(run, strategy, expected)
        if fault is not None:
            faults.append(fault)
            continue
        right.append(strategy)
        if not tune:
            return strategy
    if not right:
        return replace(TORCH, why=faults[-1].text if faults else "there is no other strategy")
    seconds = timed(run, [TORCH, *right])
    best = min(right, key=seconds.__getitem__)
    dense = faster_dense(plan(best))
    mixed = replace(best, dense=dense)
    if dense and (fault := check(run, mixed, expected)) is not None:
        faults.append(fault)
    elif dense:
        seconds |= timed(run, [best, mixed])
    fastest = min(seconds, key=seconds.__getitem__)
    return replace(
        fastest, why="it is faster" if fastest == TORCH else "", seconds={str(w): s for w, s in seconds.items()}
    )


def check(run: Run, strategy: Strategy, expected: Sequence[Any]) -> Fault | None:
    """Return the fault of a strategy, None if its outputs agree with `expected`."""
    try:
        apart = relative_error(run(strategy), expected)
    except PASSED:
        raise
    except SparsifyError as error:
        return Fault(str(strategy), " ".join(str(error).split()))
    except TraceError as error:
        return Fault(str(strategy), str(error), raised=True)
    except Exception as error:  # noqa: BLE001 - PyTorch computes the outputs instead, and the caller warns
        text = str(error) if isinstance(error, KernelError) else one_line(error)
        return Fault(str(strategy), text, raised=True, ours=True)
    # In chunks, outputs also differ if images depend on each other.
    wrong = strategy.kind != "chunks"
    text = f"its outputs differ by {apart:.1e} of the largest"
    return None if apart <= TOLERANCE else Fault(str(strategy), text, raised=wrong, ours=wrong)


def timed(run: Run, strategies: Sequence[Strategy]) -> dict[Strategy, float]:
    """Return the shortest time of each strategy in seconds; they take turns."""
    least = dict.fromkeys(strategies, float("inf"))
    rounds = 0
    begin = time.perf_counter()
    while rounds < _LEAST or rounds < _MOST and time.perf_counter() - begin < ENOUGH * len(strategies):
        for strategy in strategies:
            least[strategy] = min(least[strategy], _turn(partial(run, strategy)))
        rounds += 1
    return least


def _turn(work: Callable[[], Any]) -> float:
    """Return the shortest time of the calls that start within TURN."""
    end = time.perf_counter() + TURN
    least = _seconds(work)
    while time.perf_counter() < end:
        least = min(least, _seconds(work))
    return least


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def faster_dense(plan: Plan) -> frozenset[str]:
    """Return the nodes of the layers that PyTorch runs faster dense, layout conversions included."""
    nodes = plan.nodes
    took: dict[str, float] = {}
    buffers = memory(plan.program.floats)
    for part in plan.program.parts:
        if isinstance(part, Segment):
            for index, step in enumerate(part.instructions):
                if step.rows is not None or step.opcode == Opcode.DECIMATE:
                    one = replace(part, table=part.table[index : index + 1])
                    none = np.zeros(1, dtype=np.int64)
                    seconds = _least(partial(alone, arrays_of(plan.program, one, buffers, none)))
                    took[step.name] = took.get(step.name, 0) + seconds
    return frozenset(
        name for name, seconds in took.items() if nodes[name].target in WEIGHTED and _dense(plan, nodes[name]) < seconds
    )


def _dense(plan: Plan, node: fx.Node) -> float:
    """Return the shortest time of torch's operation on one thread plus the layout conversions, in seconds."""
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs),
        lambda one: (
            plan.known[one] if one in plan.known else torch.zeros(one.meta["val"].shape, dtype=one.meta["val"].dtype)
        ),
    )
    steps = [step for step in plan.instructions if isinstance(step, Instruction) and step.name == node.name]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return _least(lambda: node.target(*args, **kwargs)) + _moving(steps)  # type: ignore[operator]
    finally:
        torch.set_num_threads(threads)


def _moving(instructions: Sequence[Instruction]) -> float:
    """Return the shortest time of writing a layer's input as a torch tensor and its output as planes, in seconds."""
    source, planes = instructions[0].source, instructions[-1].planes
    there = Instruction(Opcode.UNPACK, "", source, source, (0,), -1)
    back = Instruction(Opcode.PACK, "", planes, planes, (), 1)
    program = assemble([there, back], {0: source, 1: planes})
    floats = max(p.channels * p.height * p.width * p.batch for p in (source, planes))
    tensor = memory(floats)
    addresses = np.array([tensor.ctypes.data], dtype=np.int64)
    segment, buffers = program.parts[0], memory(program.floats)
    assert isinstance(segment, Segment)
    return _least(partial(alone, arrays_of(program, segment, buffers, addresses)))


def _least(work: Callable[[], Any]) -> float:
    return min(_seconds(work) for _ in range(_LEAST))
