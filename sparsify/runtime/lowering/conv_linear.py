"""Lowering of convolutions, linear layers and norms, each with its fused epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx

from ..kernels.opcodes import Binary, Opcode
from ..kernels.planes import Planes
from ..kernels.simd import TILE
from .aten_graph import shape_of
from .builder import Lowering, arguments, first_result
from .elementwise import Affine, affine, binary
from .epilogue import composed, fuse_epilogue, norm
from .ir import Buffer, Instruction
from .packed_rows import (
    PackedRows,
    Place,
    chunked,
    convolution_rows,
    generates,
    linear_rows,
    one_per_plane,
    split_for_strides,
    tiled,
    whole_images,
)
from .tiling import keeps_within, tiling
from .views import VIEWS

aten = torch.ops.aten
WEIGHTED = (aten.convolution.default, aten.addmm.default, aten.mm.default)


def weighted(
    lowering: Lowering,
    node: fx.Node,
    source: Buffer,
    make: Callable[[Tensor | None, Tensor | None], PackedRows],
    out: Planes,
    last: bool = False,
) -> bool:
    """Emit a convolution or a linear layer with its epilogue."""
    after = fuse_epilogue(lowering, node, out, last)
    rows = make(after.scale, after.shift)
    both = None if out.is_vector else tiled(rows, TILE)
    inside = after.free and keeps_within(out, source.planes)
    number = after.residual if inside and after.residual is not None else lowering.new_buffer(out)
    reads = (source.number,) if after.residual is None else (source.number, after.residual)
    step = Instruction(Opcode.CONVOLVE, node.name, out, source.planes, reads, number, rows=rows, scalars=after.scalars)
    if out.is_vector:
        lowering.instructions.append(replace(step, opcode=Opcode.DOT))
    elif generates(rows, out, source.planes):
        lowering.instructions.append(replace(step, opcode=Opcode.CONVOLVE_GENERATED))
    elif both is not None:
        lowering.instructions.append(replace(step, opcode=Opcode.CONVOLVE_TILES, rows=both[0]))
        if len(both[1].biases):
            lowering.instructions.append(replace(step, rows=both[1], at=len(both[0].biases)))
    else:
        lowering.instructions.append(replace(step, rows=chunked(rows, source.planes, tiling(out, source.planes))))
    while node is not after.node:
        node = next(iter(node.users))
        lowering.done.add(node)
    return lowering.bind(node, number, out, after.last)


def convolution(lowering: Lowering, node: fx.Node) -> bool:
    """A convolution of images with constant weights; transposed ones are left to PyTorch."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments(node)
    values = lowering.constants.get(weight)
    if transposed or not isinstance(values, Tensor) or values.dim() != 4 or values.dtype != torch.float32:
        return False
    if bias is not None and bias not in lowering.constants:
        return False
    source, shape = lowering.image(x), shape_of(node)
    if source is None or shape is None:
        return False
    out = lowering.image_planes(shape)
    # padding="valid" is one number for both dimensions.
    stride, padding, dilation = ([*given] * (2 // len(given)) for given in (stride, padding, dilation))
    offset = lowering.constants[bias] if bias is not None else None

    def rows_at(place: Place) -> Callable[[Tensor | None, Tensor | None], PackedRows]:
        return lambda scale, shift: convolution_rows(values, offset, scale, shift, place, int(groups))

    geometry = (values.shape[2:], stride, padding, dilation)
    place = whole_images(source.planes, *geometry)
    if place.stride != (1, 1) and not generates(rows_at(place)(None, None), out, source.planes):
        place = split_for_strides(source.planes, out, *geometry)
        planes = place.planes
        number = lowering.new_buffer(planes)
        for index, (row, column) in enumerate(place.phases):
            numbers = {"STRIDE_Y": stride[0], "STRIDE_X": stride[1], "PHASE_Y": row, "PHASE_X": column}
            begin = index * source.planes.channels
            lowering.emit(Opcode.DECIMATE, node, planes, source, into=number, at=begin, numbers=numbers)
        source = Buffer(number, planes, ())
    return weighted(lowering, node, source, rows_at(place), out)


def linear(lowering: Lowering, node: fx.Node) -> bool:
    """A product of rows, or of the channels of pixels, with a constant matrix, plus a constant bias."""
    bias, x, weight = arguments(node) if node.target is aten.addmm.default else (None, *arguments(node))
    values = lowering.constants.get(weight)
    offset = lowering.constants.get(bias) if isinstance(bias, fx.Node) else None
    if not isinstance(values, Tensor) or values.dtype != torch.float32 or node.kwargs or x in lowering.constants:
        return False
    if isinstance(bias, fx.Node) and (offset is None or offset.dim() != 1):
        return False
    shape = shape_of(node)
    if shape is None:
        return False
    held = lowering.buffers.get(x)
    if held is not None and held.last:
        if held.channel_dim != len(held.shape) - 1:
            return False
        # A convolution of one pixel.
        place = Place(held.planes, (), np.zeros((1, 1), dtype=np.int64), 0)
        weight_of = values.t()[:, :, None, None]

        def rows(scale: Tensor | None, shift: Tensor | None) -> PackedRows:
            return convolution_rows(weight_of, offset, scale, shift, place, 1)

        return weighted(lowering, node, held, rows, replace(held.planes, channels=shape[1]), last=True)
    source = lowering.matrix(x)
    if source is None:
        return False
    one_pixel = source.planes.height * source.planes.width == 1
    out = replace(source.planes, channels=shape[1]) if one_pixel else Planes(shape[1], 1, 1, 0, shape[0])
    return weighted(
        lowering, node, source, lambda scale, shift: linear_rows(values.t(), offset, scale, shift, source.planes), out
    )


def standalone_norm(lowering: Lowering, node: fx.Node) -> bool:
    """A batch norm that follows no convolution: one weight for each plane."""
    change, result = norm(lowering, node), first_result(lowering, node)
    source = lowering.buffers.get(arguments(node)[0])
    if change is None or source is None or result is None or lowering.image(arguments(node)[0]) is None:
        return False
    lowering.done |= {node, result}
    return _by_channel(lowering, result, source, change)


def _by_channel(lowering: Lowering, node: fx.Node, source: Buffer, change: Affine) -> bool:
    def rows(scale: Tensor | None, shift: Tensor | None) -> PackedRows:
        all_in_all = change if scale is None or shift is None else composed(change, (scale, shift))
        return one_per_plane(*all_in_all, source.planes)

    return weighted(lowering, node, source, rows, source.planes, source.last)


def arithmetic(how: Binary | None, lowering: Lowering, node: fx.Node) -> bool:
    """A sum, product or the like with constants; of two activations, `binary` of `how` if that is given."""
    for source in arguments(node)[:2]:
        held = lowering.buffers.get(source) if isinstance(source, fx.Node) else None
        if held is not None and (change := affine(lowering, node, source, held)) is not None:
            return _by_channel(lowering, node, held, change)
    return how is not None and binary(how, lowering, node)


def layer_norm(lowering: Lowering, node: fx.Node) -> bool:
    """A layer norm over the channels of each pixel, if its input or its reader is in planes."""
    x, sizes, *constants, eps = arguments(node)
    result = first_result(lowering, node)
    values = [None if one is None else lowering.constants.get(one) for one in constants]
    missing = any(value is None and one is not None for value, one in zip(values, constants, strict=True))
    if result is None or missing or len(sizes) != 1:
        return False
    if x not in lowering.buffers and not _feeds_weights(lowering, result):
        return False
    source = lowering.features(x)
    if source is None:
        return False
    count = source.planes.channels
    weight = torch.ones(count) if values[0] is None else values[0]
    bias = torch.zeros(count) if values[1] is None else values[1]
    rows = one_per_plane(weight, bias, source.planes)
    number = lowering.emit(Opcode.LAYER_NORM, node, source.planes, source, rows=rows, scalars=(float(eps), 0.0))
    lowering.done |= {node, result}
    return lowering.bind(result, number, source.planes, source.last)


def _feeds_weights(lowering: Lowering, node: fx.Node) -> bool:
    """Return whether a linear layer with a kernel reads a value, directly or through a view."""
    users = [user for user in node.users if user.op == "call_function"]
    return any(
        lowering.native(user)
        if user.target in (aten.addmm.default, aten.mm.default)
        else _feeds_weights(lowering, user)
        for user in users
        if user.target in (aten.addmm.default, aten.mm.default, *VIEWS)
    )
