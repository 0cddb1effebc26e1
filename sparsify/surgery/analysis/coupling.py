"""Which channels have to go together: a number for every index of every dimension that may shrink.

Every dimension of every parameter and buffer starts with numbers of its own; each operation of the pass then says
which of its operands' numbers are the same channel, or must stay: number 0 is that of entries that never go. A
tensor's *axis* is an int64 form that tells the number of each entry along the dimensions in which it varies; it varies
in two where a dimension was split, (heads * size) into (heads, size), until something decides which of them it follows.

A dimension of which all entries are alike because a number said how long it is to be (`torch.zeros(n, self.width)`,
`x.expand(-1, self.width)`) is *offered*: it has an axis too, which counts once a tensor with channels meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from ..recording.ops import DATA_DEPENDENT, STALE, Op, Recording, Value, first_line, pointwise
from .axis_moves import move
from .deferred import Deferred, resolve
from .mac_counts import multiply_adds
from .reasons import OUTPUTS
from .union_find import UnionFind

Heads: TypeAlias = Literal["whole", "size"]
Couple: TypeAlias = "Callable[[Coupling, Op], None]"

# Of torch.nn's attention.
_ROWS_OF_HEADS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def varying(axis: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which an axis varies."""
    return tuple(d for d, size in enumerate(axis.shape) if size > 1)


class Coupling:
    """The axes of every Value of a pass, built up operation by operation.

    `rule` returns what enters an operation, None for one that only moves entries or has no rule of its own.
    Where attention splits channels over heads and sizes, they follow the heads (`heads` "whole") or the sizes ("size").
    Of the grouped convolutions `by_group` whole groups go, whatever is usual.
    """

    def __init__(
        self,
        recording: Recording,
        rule: Callable[[Op], Couple | None],
        heads: Heads = "whole",
        by_group: Container[Op] = (),
    ) -> None:
        self.heads, self.by_group = heads, by_group
        self.numbers = UnionFind()
        self.axes: dict[Value, list[Tensor]] = {}
        self.offered: dict[Value, list[Tensor]] = {}
        self.claimed: dict[Value, list[Tensor]] = {}  # those of the axes that were offered, along which all is alike
        self.ranges: list[tuple[int, int, Value, int]] = []  # first number, one past the last, tensor, dimension
        self.produced: list[Tensor] = []  # numbers whose zeros in a parameter make the operation's results zero
        self.by_reading: list[Tensor] = []  # numbers that zeros in what reads them make dead
        self.operations: list[tuple[Op, int, tuple[Tensor, ...]]] = []
        self.barriers: dict[str, None] = dict.fromkeys(recording.problems)
        self.barred: set[object] = set()  # operations and sentences that are barriers already
        self.deferred = Deferred()
        self.grouped: list[Op] = []  # convolutions that lose the same positions of every group
        self._rule = rule
        for op in recording.ops[: recording.eval_count]:
            counted = len(self.operations)
            self.visit(op)
            if len(self.operations) == counted and multiply_adds(op):
                self.operations.append((op, multiply_adds(op), ()))  # no rule says what it saves
        costly = len(self.operations)
        for op in recording.ops[recording.eval_count :]:
            self.visit(op)
        del self.operations[costly:]  # what only runs in training is no cost
        for path, given in recording.branches:
            self._pin_branch(recording, path, given)
        self.numbers.cause = OUTPUTS
        for value in recording.outputs:
            self.pin(value)
        for path in recording.attentions:
            self._pin_heads(recording, path)
        resolve(self.numbers, self.deferred)

    def of(self, value: Value) -> list[Tensor]:
        """Return the axes of a Value; a tensor of the model gets one per dimension when it is first asked for."""
        if value not in self.axes:
            made = []
            for d, size in enumerate(value.shape if value.names else ()):
                if size > 1:
                    sizes = [1] * len(value.shape)
                    sizes[d] = size
                    numbers = self.numbers.new(size)
                    self.ranges.append((int(numbers[0]), int(numbers[-1]) + 1, value, d))
                    made.append(numbers.reshape(sizes))
            self.axes[value] = made
        return self.axes[value]

    def set(self, value: Value, axes: Iterable[Tensor]) -> None:
        """Give a Value its axes; axes that vary in a common dimension become one."""
        kept: list[Tensor] = []
        for axis in axes:
            if not varying(axis):
                self.numbers.pin(axis)  # what is left of a dimension when a part of one entry was taken
                continue
            apart = []
            for other in kept:
                if set(varying(other)) & set(varying(axis)):
                    axis = self._merge(axis, other)
                else:
                    apart.append(other)
            kept = [*apart, axis]
        for axis in kept:
            if len(varying(axis)) > 1:
                self.deferred.add(axis, self.numbers.cause)
        self.axes[value] = kept

    def _merge(self, axis: Tensor, other: Tensor) -> Tensor:
        """Tie axes with a common dimension, now or once it is settled what they follow; return the wider one."""
        few, many = sorted((other, axis), key=lambda one: len(varying(one)))
        if set(varying(few)) < set(varying(many)):
            self.deferred.meet(many, few, self.numbers.cause)
        else:
            self.numbers.union(axis, other)
        return many

    def offer(self, value: Value, axes: Iterable[Tensor]) -> None:
        """Give a Value axes along dimensions in which its entries are alike; those that can not stand are fixed."""
        taken = {d for axis in self.of(value) for d in varying(axis)}
        for axis in axes:
            if len(varying(axis)) == 1 and not taken & set(varying(axis)):
                taken |= set(varying(axis))
                self.offered.setdefault(value, []).append(axis)
            else:
                self.numbers.pin(axis)

    def claim(self, value: Value, dims: Iterable[int]) -> list[Tensor]:
        """Return the axes of a Value, among them those that were offered along `dims`, which count from now on."""
        wanted = set(dims)
        offered = self.offered.pop(value, [])
        claimed = [axis for axis in offered if wanted & set(varying(axis))]
        self.claimed.setdefault(value, []).extend(claimed)
        self.axes[value] = [*self.of(value), *claimed]
        self.offer(value, [axis for axis in offered if not wanted & set(varying(axis))])
        return self.axes[value]

    def pin(self, value: Value, dims: Iterable[int] | None = None) -> None:
        """Note that a Value keeps its size along `dims`, or altogether."""
        for axis in self.of(value):
            if dims is None or set(varying(axis)) & set(dims):
                self.numbers.pin(axis)

    def depend(self, value: Value, dims: Iterable[int]) -> list[Tensor]:
        """Return the axes left after an operation that depends on the number of entries along `dims` (a mean)."""
        reduced = set(dims)
        left = []
        for axis in self.of(value):
            rest = set(varying(axis)) - reduced
            if not rest:
                self.numbers.pin(axis)
                continue
            left.append(self.union_along(axis, reduced))
        return left

    def union_along(self, axis: Tensor, dims: Iterable[int]) -> Tensor:
        """Note that channels do not differ along `dims`, and return the axis without these."""
        for d in set(varying(axis)) & set(dims):
            first = axis.narrow(d, 0, 1)
            self.numbers.union(axis, first)
            axis = first
        return axis

    def combine(self, result: Value, operands: Sequence[Value]) -> None:
        """Set the axes of an element-wise operation's result, its operands broadcast."""
        rank = len(result.shape)

        def placed(axes: Iterable[Tensor]) -> list[Tensor]:
            return [axis.reshape([1] * (rank - axis.dim()) + list(axis.shape)) for axis in axes]

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
                self.numbers.pin(axis)  # another is as long, whatever is said to this one
            else:
                self.numbers.union(axis, together.setdefault(d, axis))
        self.offer(result, together.values())

    def matched(self, operands: Sequence[tuple[Sequence[Tensor], Sequence[int]]]) -> list[Tensor]:
        """Return the axes of operands that meet entry by entry, each given by its axes and its shape."""
        given = [axis for axes, _ in operands for axis in axes]
        for axes, shape in operands:
            # A dimension that one operand follows and another of full size does not has to keep its size.
            own = {d for axis in axes for d in varying(axis)}
            for axis in given:
                loose = {d for d in varying(axis) if shape[d] > 1 and d not in own}
                if loose and loose == set(varying(axis)):
                    self.numbers.pin(axis)
                for d in loose:
                    self.numbers.union(axis, axis.narrow(d, 0, 1))
        return given

    def visit(self, op: Op) -> None:
        """Enter what one operation says; what can not be entered is kept."""
        self.numbers.cause = op
        try:
            self._apply_rule(op)
        except Exception as error:  # noqa: BLE001 - a rule, also a user's, met arguments that it does not know
            for value in op.results:
                self.pin(value)
            self.barrier(
                op, f"operation '{op.name}' does not fit its rule ({type(error).__name__}: {first_line(error)})"
            )

    def _apply_rule(self, op: Op) -> None:
        couple = self._rule(op)
        if couple is not None:
            couple(self, op)
        elif op.is_movement:
            move(self, op)
        elif pointwise(op):
            self.combine(op.results[0], op.inputs)
            if op.name in ("add", "add_") and op.results[0].constant is None:  # a bias, or a table of positions
                constants = (value for value in op.inputs if value.constant is not None)
                self.produced += [axis for value in constants for axis in self.of(value)]
            return
        else:
            self.barrier(op)
        if op.results and not op.is_movement:
            for value in op.inputs:
                for axis in self.offered.pop(value, []):
                    self.numbers.pin(axis)

    def barrier(self, op: Op, why: str = "") -> None:
        """Keep everything that goes into an operation."""
        for value in op.inputs:
            for axis in [*self.of(value), *self.offered.pop(value, [])]:
                self.numbers.pin(axis)
        for value in op.results:
            self.axes.setdefault(value, [])
        if op.name in DATA_DEPENDENT and not why:
            return  # `_pin_branch` says what it means
        what = "memory written through another tensor" if op.name == STALE else f"operation '{op.name}'"
        self.barriers[f"{op.module or 'the model'}: {why or what + ' has no rule'}"] = None
        self.barred.add(op)

    def _pin_branch(self, recording: Recording, path: str, given: Sequence[Value]) -> None:
        """Note that all channels stay that a forward meets which decides by values what it does."""
        why = f"{path or 'the model'}: its forward asks what activations hold, and may do something else with others"
        self.numbers.cause = why
        inside = [op for op in recording.ops if not path or op.module == path or op.module.startswith(f"{path}.")]
        met = dict.fromkeys([*given, *(value for op in inside for value in (*op.inputs, *op.results))])
        for value in met:
            if value in self.axes or value.constant is None:
                self.pin(value)
        self.barriers[why] = None
        self.barred.add(why)

    def _pin_heads(self, recording: Recording, path: str) -> None:
        """Note that one of torch.nn's attention modules keeps its heads and their sizes."""
        own = [recording.state.get(f"{path}.{name}" if path else name) for name in _ROWS_OF_HEADS]
        rows = [value for value in own if value in self.axes]
        why = (
            f"{path or 'the model'}: nn.MultiheadAttention takes no fewer heads: together they are as wide as its input"
        )
        self.numbers.cause = why
        for value in rows:
            self.pin(value, [0])
        if rows:
            self.barriers[why] = None
            self.barred.add(why)
