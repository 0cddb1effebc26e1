"""Which channels have to go together: a number for every index of every dimension that may shrink.

Every dimension of every parameter and buffer starts with numbers of its own; each operation of the pass then says
which of its operands' numbers are the same channel, or must stay: number 0 is that of entries that never go. A
tensor's *axis* is an int64 form that tells the number of each entry along the dimensions in which it varies; it varies
in two where a dimension was split, (heads * size) into (heads, size), until something decides which of them it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import axes as forms
from .counts import multiply_adds
from .numbers import FIXED, Numbers, lowest_connected
from .steps import STALE, Step, Tape, Value

Heads: TypeAlias = Literal["whole", "size"]


# Of torch.nn's attention.
_ROWS_OF_HEADS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def varying(axis: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which an axis varies."""
    return tuple(d for d, size in enumerate(axis.shape) if size > 1)


class Coupling:
    """The axes of every Value of a pass, built up step by step.

    Where attention splits channels over heads and sizes, they follow the heads (`heads` "whole") or the sizes ("size").
    """

    def __init__(self, tape: Tape, heads: Heads = "whole") -> None:
        self.heads = heads
        self.numbers = Numbers()
        self.axes: dict[Value, list[Tensor]] = {}
        self.ranges: list[tuple[int, int, Value, int]] = []  # first number, one past the last, tensor, dimension
        self.produced: list[Tensor] = []  # numbers whose zeros in a parameter make the operation's results zero
        self.operations: list[tuple[Step, int, tuple[Tensor, ...]]] = []
        self.barriers: dict[str, None] = {}
        self._joint: dict[bytes, Tensor] = {}
        self.barriers |= dict.fromkeys(tape.problems)
        for step in tape.steps[: tape.evaluated]:
            told = len(self.operations)
            self.follow(step)
            if len(self.operations) == told and multiply_adds(step):
                self.operations.append((step, multiply_adds(step), ()))  # no rule says what it saves
        costly = len(self.operations)
        for step in tape.steps[tape.evaluated :]:
            self.follow(step)
        del self.operations[costly:]  # what only runs in training is no cost
        for value in tape.outputs:
            self.fix(value)
        for path in tape.attentions:
            self._keep_heads(tape, path)
        self._settle_joint()

    def of(self, value: Value) -> list[Tensor]:
        """Return the axes of a Value; a tensor of the model gets one per dimension when it is first asked for."""
        if value not in self.axes:
            made = []
            for d, size in enumerate(value.shape if value.names else ()):
                if size > 1:
                    sizes = [1] * len(value.shape)
                    sizes[d] = size
                    numbers = self.numbers.fresh(size)
                    self.ranges.append((int(numbers[0]), int(numbers[-1]) + 1, value, d))
                    made.append(numbers.reshape(sizes))
            self.axes[value] = made
        return self.axes[value]

    def set(self, value: Value, axes: Iterable[Tensor]) -> None:
        """Give a Value its axes; axes that vary in a common dimension become one."""
        kept: list[Tensor] = []
        for axis in axes:
            if not varying(axis):
                self.numbers.fix(axis)  # what is left of a dimension when a part of one entry was taken
                continue
            apart = []
            for other in kept:
                if set(varying(other)) & set(varying(axis)):
                    self.numbers.tie(axis, other)
                    axis = axis if len(varying(axis)) >= len(varying(other)) else other
                else:
                    apart.append(other)
            kept = [*apart, axis]
        for axis in kept:
            if len(varying(axis)) > 1:
                squeezed = axis.squeeze().contiguous()
                self._joint.setdefault(str(tuple(squeezed.shape)).encode() + squeezed.numpy().tobytes(), squeezed)
        self.axes[value] = kept

    def fix(self, value: Value, dims: Iterable[int] | None = None) -> None:
        """Note that a Value keeps its size along `dims`, or altogether."""
        for axis in self.of(value):
            if dims is None or set(varying(axis)) & set(dims):
                self.numbers.fix(axis)

    def depend(self, value: Value, dims: Iterable[int]) -> list[Tensor]:
        """Return the axes left after an operation that depends on the number of entries along `dims` (a mean)."""
        reduced = set(dims)
        left = []
        for axis in self.of(value):
            rest = set(varying(axis)) - reduced
            if not rest:
                self.numbers.fix(axis)
                continue
            for d in set(varying(axis)) & reduced:
                first = axis.narrow(d, 0, 1)
                self.numbers.tie(axis, first)
                axis = first
            left.append(axis)
        return left

    def tied(self, axis: Tensor, dims: Iterable[int]) -> Tensor:
        """Note that channels do not differ along `dims`, and return the axis without these."""
        for d in set(varying(axis)) & set(dims):
            first = axis.narrow(d, 0, 1)
            self.numbers.tie(axis, first)
            axis = first
        return axis

    def combine(self, result: Value, operands: Sequence[Value]) -> None:
        """Set the axes of an element-wise operation's result, its operands broadcast."""
        rank = len(result.shape)
        placed = []
        for value in operands:
            ones = [1] * (rank - len(value.shape))
            placed.append(([axis.reshape(ones + list(axis.shape)) for axis in self.of(value)], [*ones, *value.shape]))
        self.set(result, self.matched(placed))

    def matched(self, operands: Sequence[tuple[Sequence[Tensor], Sequence[int]]]) -> list[Tensor]:
        """Return the axes of operands that meet entry by entry, each given by its axes and its shape."""
        given = [axis for axes, _ in operands for axis in axes]
        for axes, shape in operands:
            # A dimension that one operand follows and another of full size does not has to keep its size.
            own = {d for axis in axes for d in varying(axis)}
            for axis in given:
                loose = {d for d in varying(axis) if shape[d] > 1 and d not in own}
                if loose and loose == set(varying(axis)):
                    self.numbers.fix(axis)
                for d in loose:
                    self.numbers.tie(axis, axis.narrow(d, 0, 1))
        return given

    def follow(self, step: Step) -> None:
        """Enter what one step says."""
        from .rules import RULES, pointwise

        if step.moves:
            move(self, step)
        elif step.name in RULES:
            RULES[step.name].couple(self, step)
        elif pointwise(step):
            self.combine(step.results[0], step.inputs)
            if step.name in ("add", "add_"):  # a bias, or a table of positions
                self.produced += [
                    axis for value in step.inputs if value.constant is not None for axis in self.of(value)
                ]
        else:
            self.barrier(step)

    def barrier(self, step: Step, why: str = "") -> None:
        """Keep everything that goes into a step."""
        for value in step.inputs:
            self.fix(value)
        for value in step.results:
            self.axes.setdefault(value, [])
        what = "memory written through another tensor" if step.name == STALE else f"operation '{step.name}'"
        self.barriers[f"{step.module or 'the model'}: {why or what + ' has no rule'}"] = None

    def _keep_heads(self, tape: Tape, path: str) -> None:
        """Note that one of torch.nn's attention modules keeps its heads and their sizes."""
        own = [tape.state.get(f"{path}.{name}" if path else name) for name in _ROWS_OF_HEADS]
        rows = [value for value in own if value in self.axes]
        for value in rows:
            self.fix(value, [0])
        if rows:
            where = path or "the model"
            self.barriers[
                f"{where}: nn.MultiheadAttention takes no fewer heads: together they are as wide as its input"
            ] = None

    def _settle_joint(self) -> None:
        """Decide for every split dimension which of its parts the channels follow: that with the most channels."""
        while True:
            roots = self.numbers.roots()
            changed = False
            for axis in self._joint.values():
                numbers = roots[axis.numpy()]
                d = max(range(numbers.ndim), key=lambda d: (_channels(numbers, d), d))
                others = tuple(i for i in range(numbers.ndim) if i != d)
                lowest = numbers.min(axis=others, keepdims=True)
                if (lowest != numbers).any():
                    self.numbers.tie(torch.from_numpy(numbers), torch.from_numpy(lowest))
                    changed = True
            if not changed:
                return


def _channels(numbers: np.ndarray[Any, Any], dim: int) -> int:
    """Return how many channels are left free if everything within a slice along `dim` goes together."""
    rows = np.moveaxis(numbers, dim, 0).reshape(numbers.shape[dim], -1)
    found, index = np.unique(rows, return_inverse=True)
    index = index.reshape(rows.shape) + len(rows)
    roots = np.arange(len(rows) + len(found))
    slices = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    roots = lowest_connected(roots, slices.reshape(-1), index.reshape(-1))
    fixed = {int(roots[len(rows)])} if len(found) and found[0] == FIXED else set()
    return len(set(roots[: len(rows)].tolist()) - fixed)


def move(coupling: Coupling, step: Step) -> None:
    """Carry axes through an operation that only moves entries of one tensor."""
    value, rest = step.args[0], step.rest
    if rest is None:
        coupling.barrier(step, f"operation '{step.name}' moves entries as the input says")
        return
    results: list[list[Tensor]] = [[] for _ in step.results]
    for axis in coupling.of(value):
        if step.name in forms.PARTS:
            moved = forms.parts(step.name, axis, value.shape, rest, step.operation, len(step.results))
            if (
                step.name in ("split", "unsafe_split")
                and len({part.shape for part in moved}) == 1
                and moved[0] is not axis
            ):
                for part in moved[1:]:  # parts of one size stay of one size
                    coupling.numbers.tie(part, moved[0])
        else:
            shape = step.results[0].shape
            outcome = forms.MOVES[step.name](axis, value.shape, shape, rest, step.operation)
            moved = [forms.short(outcome.to(torch.int64)) if len(varying(outcome)) > 1 else outcome.to(torch.int64)]
        for result, form in zip(results, moved, strict=True):
            result.append(form)
    for value, axes in zip(step.results, results, strict=True):
        coupling.set(value, axes)
