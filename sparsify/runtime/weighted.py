"""Operations with weights: convolutions, linear layers and norms, with what follows them done in one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from .entrywise import CLAMPS
from .graph import shape_of
from .layout import Planes
from .lower import UNBOUNDED, Buffer, Lowering, Step, arguments, first_result
from .rows import (
    Rows,
    chunked,
    convolution_rows,
    keeps_within,
    linear_rows,
    one_per_plane,
    split_for_strides,
    tiled,
    tiling,
)
from .simd import TILE

aten = torch.ops.aten
NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)


@dataclass(frozen=True)
class Tail:
    """What follows a weighted sum and is done with it: a norm's scale and shift, something added, a clamp."""

    scale: Tensor | None
    shift: Tensor | None
    residual: int | None
    last: bool  # whether nothing else reads what is added, so that the result may take its place
    limits: tuple[float, float]
    node: fx.Node  # whose value the result is


def tail(lowering: Lowering, node: fx.Node, planes: Planes) -> Tail:
    """Return the operations behind a convolution that its kernel can do with it."""
    scale = shift = residual = None
    last, limits = False, UNBOUNDED
    user = lowering.only_user(node)
    if user is not None and user.target in NORMS:
        affine = norm(lowering, user)
        result = first_result(lowering, user)
        if affine is not None and arguments(user)[0] is node and result is not None:
            (scale, shift), node = affine, result
            user = lowering.only_user(node)
    if user is not None and user.target is aten.add.Tensor and not user.kwargs:
        other = arguments(user)[1] if arguments(user)[0] is node else arguments(user)[0]
        held = lowering.buffers.get(other) if isinstance(other, fx.Node) else None
        if held is not None and other is not node and held.planes == planes and shape_of(user) == shape_of(node):
            residual, last, node = held.number, lowering.last_use(held.number, user), user
            user = lowering.only_user(node)
    if user is not None and user.target in CLAMPS and shape_of(user) == shape_of(node):
        found = CLAMPS[user.target](*arguments(user)[1:])
        if found is not None:
            limits, node = found, user
    return Tail(scale, shift, residual, last, limits, node)


def norm(lowering: Lowering, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a batch norm in evaluation mode, in float64; None if it is none."""
    values = [lowering.constants.get(arg) if isinstance(arg, fx.Node) else arg for arg in arguments(node)]
    legit = node.target is aten._native_batch_norm_legit_no_training.default
    weight, bias, running_mean, running_var = values[1:5]
    training, eps = (False, values[6]) if legit else (values[5], values[7])
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var.double() + eps).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    shift = -running_mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def weighted(
    lowering: Lowering, node: fx.Node, source: Buffer, make: Callable[[Tensor | None, Tensor | None], Rows], out: Planes
) -> bool:
    """Write the step of a convolution or a linear layer, with what follows it."""
    after = tail(lowering, node, out)
    rows = make(after.scale, after.shift)
    both = None if out.is_vector else tiled(rows, TILE)
    inside = after.last and after.residual != source.number and keeps_within(out, source.planes)
    number = after.residual if inside and after.residual is not None else lowering.new(out)
    reads = (source.number,) if after.residual is None else (source.number, after.residual)
    step = Step("CONVOLVE", node.name, out, source.planes, reads, number, rows=rows, limits=after.limits)
    if out.is_vector:
        lowering.steps.append(replace(step, kind="DOT"))
    elif both is not None:
        lowering.steps.append(replace(step, kind="CONVOLVE_TILES", rows=both[0]))
        if len(both[1].biases):
            lowering.steps.append(replace(step, rows=both[1], at=len(both[0].biases)))
    else:
        lowering.steps.append(replace(step, rows=chunked(rows, source.planes, tiling(out, source.planes))))
    lowering.done.add(node)
    while node is not after.node:
        node = next(iter(node.users))
        lowering.done.add(node)
    return lowering.give(node, number, out)


def convolution(lowering: Lowering, node: fx.Node) -> bool:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments(node)
    values = lowering.constants.get(weight)
    if transposed or not isinstance(values, Tensor) or values.dim() != 4 or values.dtype != torch.float32:
        return False
    if bias is not None and bias not in lowering.constants:
        return False
    source, shape = lowering.image(x), shape_of(node)
    if source is None or shape is None or 0 in shape:
        return False
    out = lowering.of_image(shape)
    place = split_for_strides(source.planes, out, values.shape[2:], stride, padding, dilation)
    if place.phases:
        planes = place.planes
        number = lowering.new(planes)
        for index, (row, column) in enumerate(place.phases):
            numbers = {"STRIDE_ROWS": stride[0], "STRIDE": stride[1], "ROW_SHIFT": row, "COLUMN_SHIFT": column}
            lowering.steps.append(
                Step(
                    "SPLIT",
                    node.name,
                    planes,
                    source.planes,
                    (source.number,),
                    number,
                    at=index * source.planes.channels,
                    numbers=numbers,
                )
            )
        source = Buffer(number, planes, ())
    offset = lowering.constants[bias] if bias is not None else None
    return weighted(
        lowering,
        node,
        source,
        lambda scale, shift: convolution_rows(values, offset, scale, shift, place, int(groups)),
        out,
    )


def linear(lowering: Lowering, node: fx.Node) -> bool:
    bias, x, weight = arguments(node) if node.target is aten.addmm.default else (None, *arguments(node))
    values = lowering.constants.get(weight)
    offset = lowering.constants.get(bias) if isinstance(bias, fx.Node) else None
    if not isinstance(values, Tensor) or values.dtype != torch.float32 or node.kwargs or x in lowering.constants:
        return False
    if isinstance(bias, fx.Node) and (offset is None or offset.dim() != 1):
        return False
    source, shape = lowering.rows(x), shape_of(node)
    if source is None or shape is None:
        return False
    out = Planes(shape[1], 1, 1, 0, shape[0])
    return weighted(
        lowering, node, source, lambda scale, shift: linear_rows(values.t(), offset, scale, shift, source.planes), out
    )


def alone(lowering: Lowering, node: fx.Node) -> bool:
    """A batch norm that follows no convolution: one weight for each plane."""
    affine, result = norm(lowering, node), first_result(lowering, node)
    source = lowering.buffers.get(arguments(node)[0])
    if affine is None or source is None or result is None or lowering.image(arguments(node)[0]) is None:
        return False
    lowering.done |= {node, result}
    return weighted(
        lowering,
        result,
        source,
        lambda factor, more: one_per_plane(*after_each_other(affine, (factor, more)), source.planes),
        source.planes,
    )


def after_each_other(
    first: tuple[Tensor, Tensor], second: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of one norm after another, or of the first alone."""
    scale, shift = second
    return first if scale is None or shift is None else (first[0] * scale, first[1] * scale + shift)
