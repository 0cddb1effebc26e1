"""The axes of movement operations in the coupling: views, permutations, slices, splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..recording import broadcast_forms as forms
from ..recording.ops import Op

if TYPE_CHECKING:
    from .coupling import Coupling


def move(coupling: Coupling, op: Op) -> None:
    """Set the axes of a movement operation's results; make it a barrier if its indices depend on the input."""
    value, rest = op.args[0], op.constant_args
    if rest is None:
        coupling.barrier(op, f"operation '{op.name}' moves entries as the input says")
        return
    results: list[list[Tensor]] = [[] for _ in op.results]
    for axis in coupling.of(value):
        moved = _moved(axis, op, rest)
        if op.name in ("split", "unsafe_split") and len({part.shape for part in moved}) == 1 and moved[0] is not axis:
            for part in moved[1:]:  # equal parts have to stay equal in size
                coupling.numbers.union(part, moved[0])
        if op.name == "channel_shuffle" and axis.shape[1] > 1:  # all groups have to stay equal in size
            groups = axis.reshape(op.args[1], -1)
            coupling.numbers.union(groups, groups[:1])
        for result, form in zip(results, moved, strict=True):
            result.append(form)
    offered: list[list[Tensor]] = [[] for _ in op.results]
    for axis in coupling.offered.get(value, []):
        for of_one, form in zip(offered, _moved(axis, op, rest), strict=True):
            of_one.append(form)
    for value, axes, more in zip(op.results, results, offered, strict=True):
        coupling.set(value, _one_of_merged(coupling, op, axes))
        coupling.offer(value, [*more, *_stretched(coupling, op)])


def _moved(axis: Tensor, op: Op, rest: Any) -> list[Tensor]:
    value, shape = op.args[0], op.results[0].shape
    if op.name in forms.SPLITS:
        return forms.split(op.name, axis, value.shape, rest, op.overload, len(op.results))
    outcome = forms.MOVEMENTS[op.name](axis, value.shape, shape, rest, op.overload).to(torch.int64)
    return [forms.compress(outcome) if sum(size > 1 for size in outcome.shape) > 1 else outcome]


def _one_of_merged(coupling: Coupling, op: Op, moved: list[Tensor]) -> list[Tensor]:
    """Return the axes of a result, with one new axis in place of those whose dimensions were merged into one.

    Only one of the merged dimensions can lose channels, the others keep their sizes: with whole heads the outermost
    one that can, else the innermost one.
    """
    before = coupling.of(op.args[0])
    merging: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    for old, new in zip(before, moved, strict=True):
        sides = [[d for d, size in enumerate(form.shape) if size > 1] for form in (old, new)]
        if len(sides[0]) == len(sides[1]) == 1:
            merging.setdefault(sides[1][0], []).append((sides[0][0], old, new))
    for d, parts in merging.items():
        if len({place for place, *_ in parts}) < 2:
            continue
        (one,) = new_axes(coupling, op.results[0].shape, [d])
        parts.sort(key=lambda part: part[0], reverse=coupling.heads == "size")
        coupling.deferred.merge(one, [(old, new) for _, old, new in parts], op)
        moved = [one, *(form for form in moved if not any(form is new for _, _, new in parts))]
    return moved


def _stretched(coupling: Coupling, op: Op) -> list[Tensor]:
    """Return new axes along the dimensions that an expand or repeat enlarged to an explicit size."""
    if op.name not in ("expand", "repeat"):
        return []
    shape, given = op.results[0].shape, op.args[1]
    old = [1] * (len(shape) - len(op.args[0].shape)) + list(op.args[0].shape)
    return new_axes(coupling, shape, [d for d, n in enumerate(shape) if n > 1 and old[d] == 1 and given[d] == n])


def new_axes(coupling: Coupling, shape: tuple[int, ...], dims: list[int]) -> list[Tensor]:
    """Return, for each of `dims`, an axis of new channel numbers along it in a tensor of `shape`."""
    return [forms.along(coupling.numbers.new(shape[d]), d, len(shape)) for d in dims]


def produce(coupling: Coupling, op: Op) -> None:
    """Note the parameters among the operands of an activation: zeros in them make entries of the result zero."""
    if op.results[0].constant is None:
        constants = (value for value in op.inputs if value.constant is not None)
        coupling.produced += [axis for value in constants for axis in coupling.of(value)]
