"""Rules of matrix products and fused attention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..analysis.mac_counts import ATTENTIONS
from ..dataflow.constant_inputs import constant_inputs, propagate_sum
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import expand_rank, varying
from ..recording.ops import Op, Value


def union_or_pin(coupling: Coupling, a: Tensor | None, b: Tensor | None, size: int) -> None:
    """Join the channel numbers of both sides of a contraction of `size`; a side without numbers pins the other."""
    if size == 1:
        return
    if a is not None and b is not None and a.shape == b.shape:
        coupling.numbers.union(a, b)
        return
    for side in (a, b):
        if side is not None:
            coupling.numbers.pin(side)


def _operands(op: Op) -> tuple[Value | None, Value, Value]:
    if op.name in ("addmm", "baddbmm", "addmv"):
        return op.args[0], op.args[1], op.args[2]
    return None, op.args[0], op.args[1]


def _couple_matmul(coupling: Coupling, op: Op) -> None:
    """Couple [batch, n, m] @ [batch, m, p].

    Channels split over batch and m (or p) follow the batch dimension (whole attention heads); with `heads` "size" they
    follow m (or p), and the same ones are removed from every head.
    """
    added, a, b = _operands(op)
    result = op.results[0]
    rank = len(result.shape)
    vector = len(b.shape) < len(a.shape)
    coupling.claim(a, [len(a.shape) - 1])
    coupling.claim(b, [len(b.shape) - (1 if vector else 2)])
    shared: list[Tensor] = []  # axes of one head of keys or values that all query heads share
    if rank == 3 and any(0 in varying(axis) for axis in coupling.of(a)) and coupling.heads == "whole":
        coupling.claim(b, [0])
        shared = [axis for axis in coupling.claimed.get(b, ()) if varying(axis) == (0,)]
        coupling.by_reading += shared
    summed_a, left = _apart(coupling, a, len(a.shape) - 1)
    summed_b, right = _apart(coupling, b, len(b.shape) - (1 if vector else 2))
    for axis in right if shared else ():
        if 0 not in varying(axis):
            coupling.numbers.pin(axis)
    union_or_pin(coupling, summed_a, summed_b, a.shape[-1])
    if vector:
        found = [axis.squeeze(-1) for axis in left]
    else:
        if rank == 3:
            coupling.matched([_batches(coupling, left, a), _batches(coupling, right, b)])
        found = [*left, *(axis for axis in right if not shared or 0 in varying(axis))]
    if added is not None:
        ones = [1] * (rank - len(added.shape))
        coupling.claim(added, [d - len(ones) for axis in found for d in varying(axis)])
        extra = [expand_rank(axis, rank) for axis in coupling.of(added)]
        coupling.produced += coupling.of(added) if added.constant is not None else []
        found = coupling.matched([(found, result.shape), (extra, [*ones, *added.shape])])
    coupling.set(result, found)
    coupling.count(op, [*coupling.axes[result], *([summed_a] if summed_a is not None else [])])


def _apart(coupling: Coupling, value: Value, dim: int) -> tuple[Tensor | None, list[Tensor]]:
    """Return the channel numbers along the contracted dimension `dim` of an operand, and its other axes."""
    summed = None
    left = []
    for axis in coupling.of(value):
        if coupling.heads == "size" and 0 in varying(axis) and len(value.shape) == 3:
            if varying(axis) == (0,):  # all heads stay
                coupling.numbers.pin(axis)
                continue
            axis = coupling.union_along(axis, (0,))
        if varying(axis) == (dim,):
            summed = axis.reshape(-1)
            continue
        axis = coupling.union_along(axis, (dim,))
        left.append(axis)
        if value.constant is not None and set(varying(axis)) <= {len(value.shape) - 1, len(value.shape) - 2}:
            coupling.produced.append(axis)
    return summed, left


def _batches(coupling: Coupling, axes: list[Tensor], value: Value) -> tuple[list[Tensor], list[int]]:
    """Return the axes along the batch dimension, joined within each matrix, and the shape that they then have."""
    found = []
    for axis in axes:
        if 0 in varying(axis):
            found.append(axis.narrow(1, 0, 1).narrow(2, 0, 1))
            coupling.numbers.union(axis, found[-1])
    return found, [value.shape[0], 1, 1]


def _flow_matmul(live: Liveness, op: Op) -> None:
    added, a, b = _operands(op)
    left, right = live.compressed(a), live.compressed(b)
    product = moving = _multiplied(live, left, right, a, b)
    entering = constant_inputs(live, op)
    if entering is not None:
        moving = _multiplied(live, left * (1 - entering), right, a, b)
        product = moving + _multiplied(live, (left * entering).detach(), right, a, b)
    propagate_sum(live, op, moving, added, len(op.results[0].shape) - 1)
    if added is not None:
        product = product + live.of(added)
    live.set(op.results[0], indicator(product))


def _multiplied(live: Liveness, left: Tensor, right: Tensor, a: Value, b: Value) -> Tensor:
    """Return the form of the product of two matrices, or of a matrix and a vector, from their flags."""
    vector = len(b.shape) < len(a.shape)
    right = right.unsqueeze(-1) if vector else right
    if left.shape[-1] == 1 or right.shape[-2] == 1:
        product = left.sum(-1, keepdim=True) * right.sum(-2, keepdim=True)
    else:
        product = torch.matmul(left, right)
    rows, columns = live.full_sizes(a), live.full_sizes(b) + [-1] * vector
    batch = [max(pair) for pair in zip(rows[:-2], columns[:-2], strict=True)]
    product = product.expand([*batch, rows[-2], columns[-1]])
    return product.squeeze(-1) if vector else product


def _couple_attention(coupling: Coupling, op: Op) -> None:
    """Couple softmax(q @ k) @ v over [batch, heads, tokens, size]: whole heads, or the sizes of v if there is one."""
    q, k, v = op.args[:3]
    numbers = coupling.numbers
    if coupling.heads == "size":
        _couple_head_sizes(coupling, op)
        return
    heads: list[tuple[list[Tensor], list[int]]] = []
    one_head = len(q.shape) < 4 or q.shape[-3] == 1
    if not one_head and any(len(q.shape) - 3 in varying(axis) for axis in coupling.of(q)):
        for value in (k, v):
            coupling.claim(value, [len(value.shape) - 3])
    for value in (q, k, v):
        last = len(value.shape) - 1
        found = []
        for axis in _for_each_query(coupling.of(value), value, q):
            if varying(axis) == (last,) and value is v and one_head:
                continue
            if not set(varying(axis)) - {last - 1, last}:
                numbers.pin(axis)
                continue
            found.append(coupling.union_along(axis, (last - 1, last)))
        heads.append((found, [*q.shape[:-2], 1, 1] if value.shape[-3:-2] != (1,) else [*value.shape[:-2], 1, 1]))
    mask = _attention_mask(op)
    if mask is not None:
        ones = [1] * (len(q.shape) - len(mask.shape))
        left = [
            axis for axis in coupling.of(mask) if not set(varying(axis)) & {len(mask.shape) - 1, len(mask.shape) - 2}
        ]
        for axis in coupling.of(mask):
            if not any(axis is kept for kept in left):
                numbers.pin(axis)
        shape = [*ones, *mask.shape[:-2], 1, 1]
        heads.append(([expand_rank(axis, len(q.shape)) for axis in left], shape))
    found = coupling.matched(heads)
    if not one_head and (v.shape[-3] == 1 or coupling.claimed.get(v)):
        coupling.by_reading += found
    sizes = [axis for axis in coupling.of(v) if varying(axis) == (len(v.shape) - 1,) and one_head]
    coupling.set(op.results[0], [*found, *sizes])
    for value in op.results[1:]:
        coupling.set(value, [])
    coupling.count(op, coupling.axes[op.results[0]])


def _for_each_query(axes: Iterable[Tensor], value: Value, q: Value) -> Iterator[Tensor]:
    """Yield forms of keys or values, repeated along the heads for each query head that reads them."""
    times = q.shape[-3] // value.shape[-3] if len(value.shape) > 3 and value.shape[-3] > 1 else 1
    for axis in axes:
        yield axis if times == 1 or axis.shape[-3] == 1 else axis.repeat_interleave(times, -3)


def _couple_head_sizes(coupling: Coupling, op: Op) -> None:
    """Couple head sizes, the same in all heads: those of q with those of k, those of v by themselves."""
    q, k, v = op.args[:3]
    sizes: list[Tensor | None] = []
    for value in (q, k, v):
        last = len(value.shape) - 1
        own = None
        for axis in coupling.of(value):
            if last in varying(axis):
                own = coupling.union_along(axis, range(last))
            else:
                coupling.numbers.pin(axis)
        sizes.append(own)
    mask = _attention_mask(op)
    if mask is not None:
        coupling.pin(mask)
    ends = [None if axis is None else axis.reshape(-1) for axis in sizes]
    union_or_pin(coupling, ends[0], ends[1], q.shape[-1])
    coupling.set(op.results[0], [] if sizes[2] is None else [sizes[2]])
    for value in op.results[1:]:
        coupling.set(value, [])
    rows = math.prod(q.shape[:-1]) * k.shape[-2]
    for value, end in ((q, ends[0]), (v, ends[2])):
        coupling.count(op, [] if end is None else [end], rows * value.shape[-1])


def _attention_mask(op: Op) -> Value | None:
    given = op.args[3] if len(op.args) > 3 else op.kwargs.get("attn_mask", op.kwargs.get("attn_bias"))
    return given if isinstance(given, Value) else None


def _flow_attention(live: Liveness, op: Op) -> None:
    q, k, v = (flags for value in op.args[:3] for flags in _for_each_query([live.of(value)], value, op.args[0]))
    weights = indicator(q.sum((-2, -1), keepdim=True) + k.sum((-2, -1), keepdim=True) + 1)
    mask = _attention_mask(op)
    if mask is not None:
        weights = weights * (live.of(mask).sum() + 1)
    live.set(op.results[0], indicator(weights * v.sum(-2, keepdim=True)))
    for value in op.results[1:]:
        live.set(value, torch.ones([1] * len(value.shape)))


PRODUCTS = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"), (_couple_matmul, _flow_matmul)),
    **dict.fromkeys(ATTENTIONS, (_couple_attention, _flow_attention)),
}
