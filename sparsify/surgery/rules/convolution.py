"""Rules of convolutions: dense, grouped, depthwise, transposed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..dataflow.constant_inputs import constant_inputs, propagate_sum
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import along, reshape, varying
from ..recording.ops import Op
from .matmul import union_or_pin


def _couple_convolution(coupling: Coupling, op: Op) -> None:
    value, weight, bias, *_, transposed, _, groups = op.args
    result = op.results[0]
    numbers = coupling.numbers
    inputs, outputs = (0, 1) if transposed else (1, 0)
    if groups > 1:  # one kernel for all channels, expanded to their number
        coupling.claim(weight, [0])
    own = {varying(axis)[0]: axis for axis in coupling.of(weight) if len(varying(axis)) == 1}
    if any(len(varying(axis)) > 1 for axis in coupling.of(weight)):
        coupling.pin(weight)
    for d in range(2, len(weight.shape)):
        if d in own:
            numbers.pin(own[d])
    left = []
    entering = None
    coupling.claim(value, [1])
    for axis in coupling.depend(value, range(2, len(value.shape))):
        if varying(axis) == (1,):
            entering = axis.reshape(-1)
        elif varying(axis) == (0,):
            left.append(axis)
        else:
            numbers.pin(axis)
    channels = value.shape[1]
    leaving = _numbers_along(own, outputs, weight.shape[outputs])
    if groups == 1:
        union_or_pin(coupling, entering, _numbers_along(own, inputs, channels), channels)
    else:
        leaving = _couple_groups(coupling, entering, own, op)
    if leaving is not None:
        if bias is not None:
            for axis in coupling.of(bias):
                numbers.union(axis, leaving)
                coupling.produced.append(axis)
            if not coupling.of(bias) and len(leaving) > 1:
                numbers.pin(leaving)
        left.append(along(leaving, 1, len(result.shape)))
    elif bias is not None:
        coupling.pin(bias)
    coupling.produced += [axis for d, axis in own.items() if d == outputs or (groups > 1 and d == 0)]
    coupling.set(result, left)
    coupling.count(op, [own[d] for d in sorted(own) if d < 2])


def _numbers_along(own: dict[int, Tensor], d: int, size: int) -> Tensor | None:
    """Return a weight's channel numbers along dimension `d`: the pinned number for size 1, None if it has no axis."""
    return own[d].reshape(-1) if d in own else (torch.zeros(1, dtype=torch.int64) if size == 1 else None)


def _couple_groups(coupling: Coupling, entering: Tensor | None, own: dict[int, Tensor], op: Op) -> Tensor | None:
    """Couple a grouped convolution and return the channel numbers of its output.

    Whole groups are removed, inputs with outputs, if there are at least as many groups as inputs per group; otherwise
    the same positions of every group, inputs and outputs separately. If coupling elsewhere leaves nothing removable
    that way, the other way is taken. A depthwise convolution is the first case, with one channel per group.
    """
    value, weight, *_, transposed, _, groups = op.args
    numbers = coupling.numbers
    rows, columns = (_numbers_along(own, d, weight.shape[d]) for d in (0, 1))
    if rows is None or columns is None:
        for axis in (*own.values(), entering):
            if axis is not None:
                numbers.pin(axis)
        return None
    into = None if entering is None else entering.reshape(groups, -1)
    out = rows.reshape(groups, -1)
    if transposed:  # its rows are the inputs, its columns the outputs of every group
        numbers.union(out, torch.zeros(1, 1, dtype=torch.int64) if into is None else into)
        out = numbers.new(op.results[0].shape[1]).reshape(groups, -1)
    stay = torch.zeros(1, 1, dtype=torch.int64)
    given = stay if into is None else into
    sides = ((given, not transposed), (out, transposed))
    whole = [(given, given[:, :1]), (out, given[:, :1])]
    alike = [(side, side[:1] if side.shape[1] > 1 else stay) for side, _ in sides]
    if len(columns) > 1:
        whole.append((columns, stay))
        alike += [(side, columns[None, :] if len(columns) == side.shape[1] else stay) for side, has in sides if has]
        alike += [(columns, stay)] if into is None and not transposed else []
    width = value.shape[1] // groups
    by_group = groups >= width or op in coupling.by_group
    if not by_group:
        coupling.grouped.append(op)
    coupling.deferred.choose((whole, alike) if by_group else (alike, whole), op)
    return out.reshape(-1)


def _flow_convolution(live: Liveness, op: Op) -> None:
    value, weight, bias, *_, transposed, _, groups = op.args
    rank = len(value.shape)
    leaving = op.results[0].shape[1]
    kernel = _over_space(live.compressed(weight))
    flags = _over_space(live.of(value))

    def through(entering: Tensor) -> Tensor:
        product = _in_groups(entering, kernel, op) if groups > 1 else _product(entering, kernel, transposed)
        return product.expand(-1, leaving)

    entering = constant_inputs(live, op)
    if entering is None:
        product = moving = through(flags)
    else:
        moving = through(flags * (1 - entering))
        product = moving + through((flags * entering).detach())
    propagate_sum(live, op, _expand_end(moving, rank), bias, 1)
    if bias is not None:
        product = product + live.of(bias)
    live.set(op.results[0], indicator(_expand_end(product, rank)))


def _couple_deformable(coupling: Coupling, op: Op) -> None:
    """Couple a deformable convolution as a plain one; its offsets and the weights of its positions stay."""
    _, _, offset, weights, bias, *_, groups_of_offsets, _ = op.args
    coupling.pin(offset)
    coupling.pin(weights)
    if groups_of_offsets > 1:
        coupling.barrier(op, f"operation '{op.name}' with several groups of offsets has no rule")
        return
    coupling.claim(bias, [0])  # zeros, if the layer has none
    _couple_convolution(coupling, _undeformed(op))


def _flow_deformable(live: Liveness, op: Op) -> None:
    read = live.of(op.args[2]).sum() + live.of(op.args[3]).sum()
    _flow_convolution(live, _undeformed(op))
    live.set(op.results[0], indicator(live.of(op.results[0]) * (1 + read)))


def _undeformed(op: Op) -> Op:
    """Return the convolution with the same channels; the numbers that only concern space are not read here."""
    value, weight, _, _, bias, *_, groups, _, _ = op.args
    return replace(op, name="convolution", args=(value, weight, bias, [1], [0], [1], False, [0], groups))


def _over_space(form: Tensor) -> Tensor:
    """Return a form without the dimensions after the second, summed over them."""
    if math.prod(form.shape[2:]) == 1:
        return form.flatten(1) if form.dim() > 2 else form
    return form.sum(list(range(2, form.dim())))


def _expand_end(form: Tensor, rank: int) -> Tensor:
    """Return a form with trailing dimensions of size 1 up to `rank`."""
    return form.reshape([*form.shape, *[1] * (rank - form.dim())])


def _product(flags: Tensor, kernel: Tensor, transposed: bool) -> Tensor:
    """Return a form [batch, out] that is positive where a product of forms [batch, in] and [out, in] is."""
    kernel = kernel.t() if transposed else kernel
    if kernel.shape[1] == 1:
        return flags.sum(1, keepdim=True) * kernel.t()
    return flags.expand(-1, kernel.shape[1]) @ kernel.t()


def _in_groups(flags: Tensor, kernel: Tensor, op: Op) -> Tensor:
    """Return the form [batch, out] of the product of a grouped convolution."""
    value, weight, *_, transposed, _, groups = op.args
    batch, channels = value.shape[:2]
    leaving = op.results[0].shape[1]
    rows, columns = weight.shape[:2]
    if columns == 1 and rows == groups:
        return flags * kernel.t()
    kernel = reshape(kernel, (rows, columns), (groups, rows // groups, columns))
    kernel = kernel.transpose(1, 2) if transposed else kernel
    grouped = reshape(flags, (batch, channels), (batch, groups, channels // groups))
    return reshape(_weighted(grouped, kernel), (batch, groups, leaving // groups), (batch, leaving))


def _weighted(flags: Tensor, kernel: Tensor) -> Tensor:
    """Return the form [batch, groups, out] of a product of flags [batch, groups, in] and a kernel [groups, out, in]."""
    if kernel.shape[2] == 1:
        return flags.sum(2, keepdim=True) * kernel[:, :, 0]
    return torch.matmul(kernel, flags.expand(-1, -1, kernel.shape[2]).unsqueeze(3)).squeeze(3)


CONVOLUTIONS = {
    "convolution": (_couple_convolution, _flow_convolution),
    "torchvision::deform_conv2d": (_couple_deformable, _flow_deformable),
}
