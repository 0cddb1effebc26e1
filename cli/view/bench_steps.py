"""Timing of each step of an engine's plan, and its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, fx

from sparsify.calls import Inputs
from sparsify.preserve import torch_threads
from sparsify.runtime.lowering.ir import Call, Instruction
from sparsify.runtime.program.assemble import Segment
from sparsify.runtime.program.describe import Line, lines
from sparsify.runtime.program.plan import Plan, alone, arrays_of, contiguous, make_plan, memory

from .bench_runtimes import figures
from .show import percent, plain_table

if TYPE_CHECKING:
    from sparsify.runtime.engine import Engine
    from sparsify.runtime.tuning.search import Strategy

ENOUGH = 0.02  # seconds of timing for each step
_LEAST, _MOST = 3, 50  # passes
KINDS = ("sparse kernel", "dense kernel", "torch", "other kernels")


@dataclass(frozen=True)
class Timed:
    """A step, or consecutive equal steps, and its shortest time in seconds."""

    line: Line
    seconds: float


def plan_lines(strategy: Strategy) -> list[str]:
    """Return lines with the strategy that the engine chose for a shape, and the time of each one it tried."""
    found = [f"engine: {strategy}{f': {strategy.why}' if strategy.why else ''}"]
    return [*found, *(f"  {figures(1e3 * seconds):>9} ms  {name}" for name, seconds in strategy.seconds.items())]


def timed_steps(engine: Engine, x: Tensor, strategy: Strategy) -> tuple[int, list[Timed]]:
    """Return how many images one thread works on at once, and the steps for them with their time on one thread."""
    part, plan = part_and_plan(engine, x, strategy)
    with torch_threads(1), torch.no_grad():
        seconds = _seconds_of_steps(plan, [part])
    listed = [one for one, step in zip(seconds, plan.instructions, strict=True) if has_line(step)]
    found: list[Timed] = []
    for line, one in zip(lines(plan, engine.model, strategy.dense), listed, strict=True):
        if found and (found[-1].line.name, found[-1].line.how) == (line.name, line.how):
            found[-1] = Timed(line, found[-1].seconds + one)
        else:
            found.append(Timed(line, one))
    return len(part), found


def part_and_plan(engine: Engine, x: Tensor, strategy: Strategy) -> tuple[Tensor, Plan]:
    """Return the images that one thread works on at once, and the plan for them."""
    part = x[: strategy.images] if strategy.kind == "chunks" else x
    with torch.no_grad():
        return part, make_plan(
            engine.model, [part], lambda tensors: Inputs(*tensors), lambda node: node.name not in strategy.dense
        )


def has_line(step: Instruction | Call) -> bool:
    """Return whether the plan has a line for a step: operations without a value have none."""
    return isinstance(step, Instruction) or step.node.meta.get("val") is not None


def _seconds_of_steps(plan: Plan, inputs: Sequence[Tensor]) -> list[float]:
    """Return the shortest time of every step in seconds, each repeated by itself on the values of the steps before."""
    values: dict[fx.Node, Any] = dict(zip(plan.inputs, inputs, strict=True))
    buffers = memory(plan.program.floats)
    found: list[float] = []
    for part in plan.program.parts:
        if isinstance(part, Segment):
            held = [contiguous(values, plan.known, node) for node in part.reads]
            values.update((node, torch.empty(node.meta["val"].shape)) for node in part.writes)
            held += [values[node] for node in part.writes]
            addresses = np.array([tensor.data_ptr() for tensor in held], dtype=np.int64)
            for index in range(len(part.instructions)):
                one = replace(part, table=part.table[index : index + 1])
                found.append(least(partial(alone, arrays_of(plan.program, one, buffers, addresses))))
        else:
            call = call_of(part.node, values, plan.known)
            values[part.node] = call()
            found.append(least(call))
    return found


def call_of(node: fx.Node, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]) -> Callable[[], Any]:
    """Return the call of the operation of `node` with the values of its arguments."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: values[one] if one in values else known[one])
    operation: Any = node.target
    return partial(operation, *args, **kwargs)


def least(work: Callable[[], object]) -> float:
    """Return the shortest time of `work` in seconds."""
    times: list[float] = []
    while len(times) < _LEAST or len(times) < _MOST and sum(times) < ENOUGH:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def step_table(steps: Sequence[Timed]) -> Table:
    """Return the table of steps in order: output, weights kept, time, and how each runs."""
    table = plain_table("step", "output", "kept", "ms", last="how")
    for step in steps:
        line = step.line
        kept = percent(line.kept / line.entries) if line.entries else ""
        table.add_row(line.name, line.output, kept, f"{1e3 * step.seconds:.3f}", line.how)
    table.add_row("all steps", "", "", f"{1e3 * sum(step.seconds for step in steps):.3f}", "")
    return table


def kind(how: str) -> str:
    """Return the kind of a step in the chart's legend."""
    return next((name for name in KINDS if how.startswith(name)), "other kernels")
