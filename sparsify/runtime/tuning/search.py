"""Which way is the fastest for inputs of one shape: each is checked against the model, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...errors import SparsifyError
from ..kernel_errors import PASSED, Fault, KernelError, one_line
from ..lowering.builder import Step
from ..lowering.conv_linear import WEIGHTED
from ..program.assemble import Segment, assemble
from ..program.plan import Plan, alone, arrays_of, memory

TOLERANCE = 1e-5  # of the largest output
CHUNKS = (1, 4, 8, 16)  # images
ENOUGH = 0.2  # seconds of timing for each way
_LEAST, _MOST = 3, 50  # rounds


@dataclass(frozen=True)
class Way:
    """How inputs of one shape are run.

    `kind` is "torch", "split" (all threads work on all images) or "chunks" (a thread works on `images` at a time). Of
    `dense`, layers by their nodes' names, torch does the work although there is a kernel. `why` says why it is torch,
    `seconds` how long every way took that was timed.
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


TORCH = Way("torch")
Run = Callable[[Way], list[Any]]


def choose(
    run: Run, plan: Callable[[Way], Plan], ways: Iterable[Way], tune: bool, faults: list[Fault] | None = None
) -> Way:
    """Return the fastest of the ways whose outputs are torch's, or torch's own.

    `run` returns the outputs of a way, flat; `plan` the plan it uses. Without `tune` the first that is right is taken.
    `faults` takes what is wrong with the others.
    """
    expected = run(TORCH)
    right: list[Way] = []
    found = [] if faults is None else faults
    for way in ways:
        fault = checked(run, way, expected)
        if fault is not None:
            found.append(fault)
            continue
        right.append(way)
        if not tune:
            return way
    if not right:
        return replace(TORCH, why=found[-1].text if found else "there is no other way")
    seconds = timed(run, [TORCH, *right])
    best = min(right, key=seconds.__getitem__)
    dense = faster_dense(plan(best))
    mixed = replace(best, dense=dense)
    if dense and checked(run, mixed, expected) is None:
        seconds |= timed(run, [best, mixed])
    fastest = min(seconds, key=seconds.__getitem__)
    return replace(
        fastest, why="it is faster" if fastest == TORCH else "", seconds={str(w): s for w, s in seconds.items()}
    )


def checked(run: Run, way: Way, expected: Sequence[Any]) -> Fault | None:
    """Return what is wrong with a way, None if its outputs are those expected."""
    try:
        apart = difference(run(way), expected)
    except PASSED:
        raise
    except SparsifyError as error:
        return Fault(" ".join(str(error).split()))
    except KernelError as error:
        return Fault(str(error), raised=True, of_kernel=True)
    except Exception as error:  # noqa: BLE001 - whatever a forward raises when it is traced, torch can run it
        return Fault(one_line(error), raised=True)
    return None if apart <= TOLERANCE else Fault(f"its outputs differ by {apart:.1e} of the largest")


def timed(run: Run, ways: Sequence[Way]) -> dict[Way, float]:
    """Return the least seconds of each way; they take turns."""
    least = dict.fromkeys(ways, float("inf"))
    rounds = 0
    begin = time.perf_counter()
    while rounds < _LEAST or rounds < _MOST and time.perf_counter() - begin < ENOUGH * len(ways):
        for way in ways:
            least[way] = min(least[way], _seconds(partial(run, way)))
        rounds += 1
    return least


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def faster_dense(plan: Plan) -> frozenset[str]:
    """Return the nodes of the layers that torch's dense operation does sooner, the way there and back included."""
    nodes = plan.nodes
    took: dict[str, float] = {}
    buffers = memory(plan.program.floats)
    for part in plan.program.parts:
        if isinstance(part, Segment):
            for index, step in enumerate(part.steps):
                if step.rows is not None or step.kind == "SPLIT":
                    one = replace(part, table=part.table[index : index + 1])
                    none = np.zeros(1, dtype=np.int64)
                    seconds = _least(partial(alone, arrays_of(plan.program, one, buffers, none)))
                    took[step.name] = took.get(step.name, 0) + seconds
    return frozenset(
        name for name, seconds in took.items() if nodes[name].target in WEIGHTED and _dense(plan, nodes[name]) < seconds
    )


def _dense(plan: Plan, node: fx.Node) -> float:
    """Return the least seconds of torch's operation on one thread, and of moving its input and output."""
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs),
        lambda one: (
            plan.known[one] if one in plan.known else torch.zeros(one.meta["val"].shape, dtype=one.meta["val"].dtype)
        ),
    )
    steps = [step for step in plan.steps if isinstance(step, Step) and step.name == node.name]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return _least(lambda: node.target(*args, **kwargs)) + _moving(steps)  # type: ignore[operator]
    finally:
        torch.set_num_threads(threads)


def _moving(steps: Sequence[Step]) -> float:
    """Return the least seconds of writing a layer's input as torch's tensor, and its output as planes."""
    source, planes = steps[0].source, steps[-1].planes
    there = Step("UNPACK", "", source, source, (0,), -1)
    back = Step("PACK", "", planes, planes, (), 1)
    program = assemble([there, back], {0: source, 1: planes})
    floats = max(p.channels * p.height * p.width * p.lanes for p in (source, planes))
    tensor = memory(floats)
    addresses = np.array([tensor.ctypes.data], dtype=np.int64)
    segment, buffers = program.parts[0], memory(program.floats)
    assert isinstance(segment, Segment)
    return _least(partial(alone, arrays_of(program, segment, buffers, addresses)))


def _least(work: Callable[[], Any]) -> float:
    return min(_seconds(work) for _ in range(_LEAST))


def difference(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return how far outputs are from those expected, relative to the largest; inf if they are of another kind."""
    return max((_apart(one, other) for one, other in zip(outputs, expected, strict=True)), default=0.0)


def _apart(one: Any, other: Any) -> float:
    if not isinstance(other, Tensor):
        return 0.0 if one == other else float("inf")
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not other.is_floating_point() or other.numel() == 0:
        return 0.0 if torch.equal(one, other) else float("inf")
    finite = other.isfinite()
    # Where the model gives no number, the same must come out.
    if not torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num()) or not bool(
        one[finite].isfinite().all()
    ):
        return float("inf")
    largest = float(other[finite].abs().max()) if finite.any() else 0.0
    apart = float((one[finite] - other[finite]).abs().max()) if finite.any() else 0.0
    return apart / largest if largest else float(apart > 0)
