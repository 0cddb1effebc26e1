"""Coupling: which channels can only be removed together (the dependency graph of channels, as union-find).

Every index of every dimension of every parameter and buffer gets its own channel number. Each operation then joins the
numbers that belong to one channel, or pins those that must stay, by joining them with number 0. A tensor's *axis* is an
int64 broadcast form that holds the channel number of each entry and varies along one dimension. If a dimension was
split, (heads * size) into (heads, size), the axis varies along both until it is decided which of them it follows.

A dimension of equal entries with an explicit size (`torch.zeros(n, self.width)`, `x.expand(-1, self.width)`) is
*offered*: its axis has no effect until it is *claimed*, when the tensor is combined with one that has channels there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from ..recording.broadcast_forms import along, expand_rank, varying
from ..recording.ops import DATA_DEPENDENT, LIKE, STALE, Op, Recording, Value, described, fills_new_memory, pointwise
from .axis_moves import move, produce
from .deferred import Deferred, resolve
from .mac_counts import multiply_adds
from .pinned_modules import pin_branch, pin_heads
from .reasons import IN_OBJECTS, OUTPUTS
from .union_find import UnionFind

Heads: TypeAlias = Literal["whole", "size"]
Couple: TypeAlias = "Callable[[Coupling, Op], None]"


class Coupling:
    """The axes of every Value of a recording, built up operation by operation.

    `rule` returns the function that couples an operation, None for a movement or an operation without a rule. If
    attention splits channels over heads and sizes, they follow the heads (`heads` "whole") or the sizes ("size").
    Grouped convolutions in `by_group` lose whole groups; for others `rules.convolution` decides.
    """

    def __init__(
        self,
        recording: Recording,
        rule: Callable[[Op], Couple | None],
        heads: Heads = "whole",
        by_group: Container[Op] = (),
    ) -> None:
        self.heads, self.by_group, self._rule = heads, by_group, rule
        self.numbers, self.deferred = UnionFind(), Deferred()
        self.axes: dict[Value, list[Tensor]] = {}
        self.offered: dict[Value, list[Tensor]] = {}
        self.claimed: dict[Value, list[Tensor]] = {}  # offered axes that were claimed: entries along them are equal
        self.ranges: list[tuple[int, int, Value, int]] = []  # first number, one past the last, tensor, dimension
        self.produced: list[Tensor] = []  # numbers of parameters whose zeros make an operation's results zero
        self.by_reading: list[Tensor] = []  # numbers made dead only by zeros in the weights that read them
        self.operations: list[tuple[Op, int, tuple[Tensor, ...]]] = []
        self.barriers: dict[str, None] = dict.fromkeys(recording.problems)
        self.barred: set[object] = set()  # causes that a barrier reports
        self.grouped: list[Op] = []  # convolutions that lose the same positions of every group
        for op in recording.ops[: recording.eval_count]:
            counted = len(self.operations)
            self.visit(op)
            if len(self.operations) == counted and multiply_adds(op):
                self.count(op, ())  # counted, but no rule says what reduces the cost
        costly = len(self.operations)  # further passes do not count in the cost
        for op in recording.ops[recording.eval_count :]:
            self.visit(op)
        del self.operations[costly:]
        for path, given, asked in recording.branches:
            pin_branch(self, recording, path, given, asked)
        for value in recording.outputs:
            self.numbers.cause = IN_OBJECTS if value in recording.in_objects else OUTPUTS
            self.pin(value)
        for path in recording.attentions:
            pin_heads(self, recording, path)
        self.produced += resolve(self.numbers, self.deferred, self.produced)

    def of(self, value: Value) -> list[Tensor]:
        """Return the axes of a Value; the first call for a tensor of the model makes one per dimension."""
        if value not in self.axes:
            made = []
            for d, size in enumerate(value.shape if value.names else ()):
                if size > 1:
                    numbers = self.numbers.new(size)
                    self.ranges.append((int(numbers[0]), int(numbers[-1]) + 1, value, d))
                    made.append(along(numbers, d, len(value.shape)))
            self.axes[value] = made
        return self.axes[value]

    def along(self, value: Value, dim: int) -> Tensor | None:
        """Return the channel numbers of the axis along `dim` alone, int64 [size], or None if there is none."""
        return next((axis.reshape(-1) for axis in self.of(value) if varying(axis) == (dim,)), None)

    def count(self, op: Op, axes: Iterable[Tensor], cost: int | None = None) -> None:
        """Note the multiply-adds of an operation, which the axes along one dimension reduce; `cost`: of a part."""
        numbers = tuple(axis.reshape(-1) for axis in axes if len(varying(axis)) == 1)
        self.operations.append((op, multiply_adds(op) if cost is None else cost, numbers))

    def set(self, value: Value, axes: Iterable[Tensor]) -> None:
        """Set the axes of a Value, and join those that vary along a common dimension."""
        kept: list[Tensor] = []
        for axis in axes:
            if not varying(axis):
                self.numbers.pin(axis)  # a slice of one entry, which no longer shows its dimension
                continue
            separate = []
            for other in kept:
                if set(varying(other)) & set(varying(axis)):
                    axis = self._merge(axis, other)
                else:
                    separate.append(other)
            kept = [*separate, axis]
        for axis in kept:
            if len(varying(axis)) > 1:
                self.deferred.add(axis, self.numbers.cause)
        self.axes[value] = kept

    def _merge(self, axis: Tensor, other: Tensor) -> Tensor:
        """Join axes with a common dimension, now or when it is decided which one they follow; return the wider axis."""
        few, many = sorted((other, axis), key=lambda one: len(varying(one)))
        if set(varying(few)) < set(varying(many)):
            self.deferred.meet(many, few, self.numbers.cause)
        else:
            self.numbers.union(axis, other)
        return many

    def offer(self, value: Value, axes: Iterable[Tensor]) -> None:
        """Offer axes along dimensions of equal entries; pin those along a dimension that has another axis."""
        taken = {d for axis in self.of(value) for d in varying(axis)}
        for axis in axes:
            if len(varying(axis)) == 1 and not taken & set(varying(axis)):
                taken |= set(varying(axis))
                self.offered.setdefault(value, []).append(axis)
            else:
                self.numbers.pin(axis)

    def claim(self, value: Value, dims: Iterable[int]) -> list[Tensor]:
        """Return the axes of a Value, including those offered along `dims`, which are claimed now."""
        wanted = set(dims)
        offered = self.offered.pop(value, [])
        claimed = [axis for axis in offered if wanted & set(varying(axis))]
        self.claimed.setdefault(value, []).extend(claimed)
        self.axes[value] = [*self.of(value), *claimed]
        self.offer(value, [axis for axis in offered if not wanted & set(varying(axis))])
        return self.axes[value]

    def pin(self, value: Value, dims: Iterable[int] | None = None) -> None:
        """Pin the channels of a Value along `dims`, or all of them."""
        for axis in self.of(value):
            if dims is None or set(varying(axis)) & set(dims):
                self.numbers.pin(axis)

    def depend(self, value: Value, dims: Iterable[int]) -> list[Tensor]:
        """Pin the channels along `dims`, on whose number an operation (a mean) depends; return the remaining axes."""
        reduced = set(dims)
        left = []
        for axis in self.of(value):
            if set(varying(axis)) <= reduced:
                self.numbers.pin(axis)
            else:
                left.append(self.union_along(axis, reduced))
        return left

    def union_along(self, axis: Tensor, dims: Iterable[int]) -> Tensor:
        """Join the channels of an axis along `dims` and return the axis with size 1 there."""
        for d in set(varying(axis)) & set(dims):
            first = axis.narrow(d, 0, 1)
            self.numbers.union(axis, first)
            axis = first
        return axis

    def combine(self, result: Value, operands: Sequence[Value]) -> None:
        """Join the axes of the broadcast operands of an element-wise operation and set those of its result."""
        rank = len(result.shape)

        def placed(axes: Iterable[Tensor]) -> list[Tensor]:
            return [expand_rank(axis, rank) for axis in axes]

        followed = {d for value in operands for axis in placed(self.of(value)) for d in varying(axis)}
        for value in operands:
            self.claim(value, [d - rank + len(value.shape) for d in followed])
        shapes = [[1] * (rank - len(value.shape)) + list(value.shape) for value in operands]
        self.set(result, self.matched([(placed(self.of(v)), shape) for v, shape in zip(operands, shapes, strict=True)]))
        offered = [placed(self.offered.get(value, [])) for value in operands]
        together: dict[int, Tensor] = {}
        for axis in (axis for axes in offered for axis in axes):
            (d,) = varying(axis)
            if any(
                shape[d] > 1 and d not in {varying(o)[0] for o in own}
                for own, shape in zip(offered, shapes, strict=True)
            ):
                self.numbers.pin(axis)  # another operand fixes the size along this dimension
            else:
                self.numbers.union(axis, together.setdefault(d, axis))
        self.offer(result, together.values())

    def matched(self, operands: Sequence[tuple[Sequence[Tensor], Sequence[int]]]) -> list[Tensor]:
        """Return the axes of `operands`, (axes, shape) each, combined entry by entry; pin those that one lacks."""
        given = [axis for axes, _ in operands for axis in axes]
        for axes, shape in operands:
            # A dimension has to keep its size if an operand has its full size but no axis along it.
            own = {d for axis in axes for d in varying(axis)}
            for axis in given:
                loose = {d for d in varying(axis) if shape[d] > 1 and d not in own}
                if loose and loose == set(varying(axis)):
                    self.numbers.pin(axis)
                for d in loose:
                    self.numbers.union(axis, axis.narrow(d, 0, 1))
        return given

    def visit(self, op: Op) -> None:
        """Couple one operation; if its rule raises, pin its results and make it a barrier."""
        self.numbers.cause = op
        try:
            self._apply_rule(op)
        except Exception as error:  # noqa: BLE001 - a rule, perhaps a user's, failed on unexpected arguments
            for value in op.results:
                self.pin(value)
            self.barrier(op, f"operation '{op.name}' does not fit its rule ({described(error)})")

    def _apply_rule(self, op: Op) -> None:
        couple = self._rule(op)
        if couple is not None:
            couple(self, op)
        elif op.is_movement:
            move(self, op)
        elif pointwise(op):
            self.combine(op.results[0], op.inputs[fills_new_memory(op) :])
            if op.name in ("add", "add_", "where"):  # a bias, a position table, a mask token
                produce(self, op)
            return
        else:
            self.barrier(op)
        if op.results and not op.is_movement and op.name not in LIKE:
            for value in op.inputs:
                for axis in self.offered.pop(value, []):
                    self.numbers.pin(axis)

    def barrier(self, op: Op, why: str = "") -> None:
        """Pin all channels that enter an operation and report it; `why` replaces "operation ... has no rule"."""
        met = [axis for value in op.inputs for axis in [*self.of(value), *self.offered.pop(value, [])]]
        for axis in met:
            self.numbers.pin(axis)
        for value in op.results:
            self.axes.setdefault(value, [])
        if not why and (op.name in DATA_DEPENDENT or not met):
            return  # `pin_branch` reports reads of values; without channels (arithmetic of indices) there is no loss
        what = "memory written through another tensor" if op.name == STALE else f"operation '{op.name}'"
        self.barriers[f"{op.module or 'the model'}: {why or what + ' has no rule'}"] = None
        self.barred.add(op)
