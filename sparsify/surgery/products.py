"""Rules of operations that multiply and add up: convolutions, matrix products, attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .coupling import Coupling, varying
from .liveness import Liveness, spread
from .tape import Step, Value


def _couple_convolution(coupling: Coupling, step: Step) -> None:
    value, weight, bias, *_, transposed, _, groups = step.args
    result = step.results[0]
    numbers = coupling.numbers
    inputs, outputs = (0, 1) if transposed else (1, 0)
    own = {varying(axis)[0]: axis for axis in coupling.of(weight) if len(varying(axis)) == 1}
    if any(len(varying(axis)) > 1 for axis in coupling.of(weight)):
        coupling.fix(weight)
    for d in range(2, len(weight.shape)):
        if d in own:
            numbers.fix(own[d])
    left = []
    entering = None
    for axis in coupling.of(value):
        if varying(axis) == (1,):
            entering = axis.reshape(-1)
        elif varying(axis) == (0,):
            left.append(axis)
        else:
            numbers.fix(axis)
    channels = value.shape[1]
    leaving = _numbers_along(own, outputs, weight.shape[outputs])
    if groups == 1:
        tie_or_fix(coupling, entering, _numbers_along(own, inputs, channels), channels)
    else:
        leaving = _couple_groups(coupling, entering, own, weight.shape, groups, channels, transposed=transposed)
    if leaving is not None:
        shape = [1] * len(result.shape)
        shape[1] = -1
        if bias is not None:
            for axis in coupling.of(bias):
                numbers.tie(axis, leaving)
                coupling.produced.append(axis)
            if not coupling.of(bias) and len(leaving) > 1:
                numbers.fix(leaving)
        left.append(leaving.reshape(shape))
    elif bias is not None:
        coupling.fix(bias)
    coupling.produced += [axis for d, axis in own.items() if d == outputs or (groups > 1 and d == 0)]
    coupling.set(result, left)
    positions = math.prod(result.shape) if not transposed else math.prod(value.shape)
    cost = positions * math.prod(weight.shape) // weight.shape[0]
    coupling.operations.append((step, cost, tuple(own[d].reshape(-1) for d in sorted(own) if d < 2)))


def _numbers_along(own: dict[int, Tensor], d: int, size: int) -> Tensor | None:
    """Return a weight's numbers along one dimension; one of size 1 has none."""
    return own[d].reshape(-1) if d in own else (torch.zeros(1, dtype=torch.int64) if size == 1 else None)


def tie_or_fix(coupling: Coupling, a: Tensor | None, b: Tensor | None, size: int) -> None:
    """Note that two sides of a sum are the same channels; a side without numbers keeps the other whole."""
    if size == 1:
        return
    if a is not None and b is not None and a.shape == b.shape:
        coupling.numbers.tie(a, b)
        return
    for side in (a, b):
        if side is not None:
            coupling.numbers.fix(side)


def _couple_groups(
    coupling: Coupling,
    entering: Tensor | None,
    own: dict[int, Tensor],
    shape: tuple[int, ...],
    groups: int,
    channels: int,
    *,
    transposed: bool,
) -> Tensor | None:
    """Couple a grouped convolution and return the numbers of its output channels.

    Either whole groups go, with their inputs and outputs, or the same position of every group: whichever leaves more
    to choose from. Depthwise convolutions are the first case with one channel to a group.
    """
    numbers = coupling.numbers
    if transposed:  # weight [in, out / groups]: the second dimension is shared by all groups
        if shape[1] == 1 and 0 in own and entering is not None:
            numbers.tie(own[0].reshape(-1), entering)
            return own[0].reshape(groups, -1)[:, :1].reshape(-1) if channels == groups else _fixed(coupling, own, entering)
        return _fixed(coupling, own, entering)
    leaving = _numbers_along(own, 0, shape[0])
    if leaving is None or entering is None:
        return _fixed(coupling, own, entering)
    width = channels // groups
    into, out = entering.reshape(groups, width), leaving.reshape(groups, -1)
    if groups >= width:
        numbers.tie(into, out[:, :1])
        numbers.tie(out, out[:, :1])
        if width > 1:
            numbers.tie(into, into[:, :1])
            if 1 in own:
                numbers.fix(own[1])
    else:
        within = _numbers_along(own, 1, width)
        if within is None or out.shape[1] == 1:
            return _fixed(coupling, own, entering)
        numbers.tie(into, within[None, :])
        numbers.tie(out, out[:1])
    return leaving


def _fixed(coupling: Coupling, own: dict[int, Tensor], entering: Tensor | None) -> None:
    for axis in [*own.values(), *([] if entering is None else [entering])]:
        coupling.numbers.fix(axis)


def _flow_convolution(live: Liveness, step: Step) -> None:
    value, weight, bias, *_, transposed, _, groups = step.args
    rank = len(value.shape)
    flags = live.of(value)
    flags = flags.sum([d for d in range(rank) if d > 1], keepdim=True) if rank > 2 else flags
    flags = flags.expand(-1, value.shape[1], *[-1] * (rank - 2)).reshape(flags.shape[0], value.shape[1], 1)
    kernel = live.of(weight)
    kernel = kernel.expand(weight.shape[0], weight.shape[1], *[-1] * (kernel.dim() - 2)).flatten(2).sum(2, keepdim=True)
    product = (F.conv_transpose1d if transposed else F.conv1d)(flags, kernel, groups=groups)
    if bias is not None:
        product = product + live.of(bias).reshape(1, -1, 1)
    live.set(step.results[0], spread(product.reshape(product.shape[0], -1, *[1] * (rank - 2))))


def _operands(step: Step) -> tuple[Value | None, Value, Value]:
    if step.name in ("addmm", "baddbmm", "addmv"):
        return step.args[0], step.args[1], step.args[2]
    return None, step.args[0], step.args[1]


def _couple_matmul(coupling: Coupling, step: Step) -> None:
    """[batch, n, m] @ [batch, m, p]; channels split over batch and m (or p) follow the batch: whole attention heads."""
    added, a, b = _operands(step)
    numbers = coupling.numbers
    rank = len(step.results[0].shape)
    vector = len(b.shape) < len(a.shape)
    sizes = a.shape[-1]
    left: list[Tensor] = []
    summed: list[Tensor | None] = [None, None]
    batch = []
    for side, value, dim in ((0, a, len(a.shape) - 1), (1, b, len(b.shape) - (1 if vector else 2))):
        followed = []
        for axis in coupling.of(value):
            if varying(axis) == (dim,):
                summed[side] = axis.reshape(-1)
                continue
            if dim in varying(axis):
                first = axis.narrow(dim, 0, 1)
                numbers.tie(axis, first)
                axis = first
            followed.append(axis)
            if value.constant is not None and set(varying(axis)) <= {len(value.shape) - 1, len(value.shape) - 2}:
                coupling.produced.append(axis)
        batch.append(followed)
    tie_or_fix(coupling, summed[0], summed[1], sizes)
    if vector:
        left = [axis.squeeze(-1) for axis in batch[0]]
    else:
        if rank == 3:
            leading = [([axis for axis in side if 0 in varying(axis)], [v.shape[0], 1, 1]) for side, v in zip(batch, (a, b))]
            short = [([axis.narrow(1, 0, 1).narrow(2, 0, 1) for axis in axes], shape) for axes, shape in leading]
            for (axes, _), (own, _) in zip(leading, short, strict=True):
                for axis, brief in zip(axes, own, strict=True):
                    numbers.tie(axis, brief)
            coupling.matched(short)
        left = [*batch[0], *batch[1]]
    if added is not None:
        ones = [1] * (rank - len(added.shape))
        extra = [axis.reshape(ones + list(axis.shape)) for axis in coupling.of(added)]
        coupling.produced += coupling.of(added) if added.constant is not None else []
        full = [1 if size == 1 else size for size in step.results[0].shape]
        left = coupling.matched([(left, full), (extra, [*ones, *added.shape])])
    coupling.set(step.results[0], left)
    cost = math.prod(step.results[0].shape) * sizes
    everything = [*coupling.axes[step.results[0]], *([summed[0]] if summed[0] is not None else [])]
    coupling.operations.append((step, cost, tuple(axis.reshape(-1) for axis in everything if len(varying(axis)) == 1)))


def _flow_matmul(live: Liveness, step: Step) -> None:
    added, a, b = _operands(step)
    left, right = live.of(a), live.of(b)
    inner = a.shape[-1]
    left = left.expand(*left.shape[:-1], inner)
    if len(b.shape) < len(a.shape):
        product = torch.matmul(left, right.expand(inner))
    else:
        product = torch.matmul(left, right.expand(*right.shape[:-2], inner, right.shape[-1]))
    if added is not None:
        product = product + live.of(added)
    live.set(step.results[0], spread(product))


def _couple_attention(coupling: Coupling, step: Step) -> None:
    """softmax(q @ k) @ v over [batch, heads, tokens, size]: heads go whole, or, with one head, sizes of v."""
    q, k, v = step.args[:3]
    numbers = coupling.numbers
    heads: list[tuple[list[Tensor], list[int]]] = []
    for value in (q, k, v):
        last = len(value.shape) - 1
        found = []
        for axis in coupling.of(value):
            if varying(axis) == (last,) and value is v:
                continue
            if not set(varying(axis)) - {last - 1, last}:
                numbers.fix(axis)
                continue
            for d in set(varying(axis)) & {last - 1, last}:
                numbers.tie(axis, axis.narrow(d, 0, 1))
                axis = axis.narrow(d, 0, 1)
            found.append(axis)
        heads.append((found, [*value.shape[:-2], 1, 1]))
    mask = _attention_mask(step)
    if mask is not None:
        ones = [1] * (len(q.shape) - len(mask.shape))
        left = [axis for axis in coupling.of(mask) if not set(varying(axis)) & {len(mask.shape) - 1, len(mask.shape) - 2}]
        for axis in coupling.of(mask):
            if not any(axis is kept for kept in left):
                numbers.fix(axis)
        shape = [*ones, *mask.shape[:-2], 1, 1]
        heads.append(([axis.reshape(ones + list(axis.shape)) for axis in left], shape))
    found = coupling.matched(heads)
    sizes = [axis for axis in coupling.of(v) if varying(axis) == (len(v.shape) - 1,)]
    coupling.set(step.results[0], [*found, *sizes])
    for value in step.results[1:]:
        coupling.set(value, [])
    cost = 2 * math.prod(q.shape) * k.shape[-2]
    axes = coupling.axes[step.results[0]]
    coupling.operations.append((step, cost, tuple(axis.reshape(-1) for axis in axes if len(varying(axis)) == 1)))


def _attention_mask(step: Step) -> Value | None:
    given: Any = step.kwargs.get("attn_mask")
    if given is None and len(step.args) > 3 and isinstance(step.args[3], Value):
        given = step.args[3]
    return given


def _flow_attention(live: Liveness, step: Step) -> None:
    q, k, v = (live.of(value) for value in step.args[:3])
    weights = spread(q.sum((-2, -1), keepdim=True) + k.sum((-2, -1), keepdim=True) + 1)
    mask = _attention_mask(step)
    if mask is not None:
        weights = weights * (live.of(mask).sum() + 1)
    live.set(step.results[0], spread(weights * v.sum(-2, keepdim=True)))
    for value in step.results[1:]:
        live.set(value, torch.ones([1] * len(value.shape)))


_MATMUL = (_couple_matmul, _flow_matmul)
_ATTENTION = (_couple_attention, _flow_attention)
PRODUCTS = {
    "convolution": (_couple_convolution, _flow_convolution),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"), _MATMUL),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _ATTENTION,
    ),
}
