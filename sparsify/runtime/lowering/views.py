"""Lowering of view-like operations (reshape, permute, slice, split, cat, pad): zero-copy where the layout allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import fx

from ..kernels.opcodes import Opcode
from .aten_graph import shape_of
from .builder import Lowering, arguments
from .ir import Buffer

aten = torch.ops.aten
VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)


def view_of(node: fx.Node, source: fx.Node, held: Buffer) -> Buffer | None:
    """Return a node's value as a zero-copy view of its source's planes, None if it needs a copy."""
    shape = shape_of(node)
    if shape is None or arguments(node)[0] is not source:
        return None
    if node.target in VIEWS or (node.target in SAME_IF_NO_SMALLER and shape == held.shape):
        return replace(held, shape=shape)
    if node.target in (aten.permute.default, aten.transpose.int):
        return _permuted(_order(node, len(shape)), shape, held)
    return None


def _order(node: fx.Node, dims: int) -> list[int]:
    """Return, for each output dimension of a permutation, the input dimension."""
    if node.target is aten.permute.default:
        return [dim % dims for dim in arguments(node)[1]]
    order = list(range(dims))
    one, two = (dim % dims for dim in arguments(node)[1:3])
    order[one], order[two] = two, one
    return order


def _permuted(order: Sequence[int], shape: tuple[int, ...], held: Buffer) -> Buffer | None:
    if len(order) < 2:
        return replace(held, shape=shape)
    planes, dims = held.planes, len(order)
    pixels = planes.height * planes.width
    channels, rest = (held.shape[-1], held.shape[1:-1]) if held.last else (held.shape[1], held.shape[2:])
    there, back = [0, *range(2, dims), 1], [0, dims - 1, *range(1, dims - 1)]
    if pixels > 1 and (held.shape[0], channels, math.prod(rest)) == (planes.batch, planes.channels, pixels):
        if list(order) == (back if held.last else there):
            return replace(held, shape=shape, last=not held.last)
    moved = [dim for dim in order if held.shape[dim] != 1]
    return replace(held, shape=shape) if moved == sorted(moved) else None


SAME_IF_NO_SMALLER = (aten.slice.Tensor, aten.expand.default, aten._adaptive_avg_pool2d.default)


def view(lowering: Lowering, node: fx.Node) -> bool:
    """A zero-copy view: no instruction."""
    held = lowering.buffers.get(arguments(node)[0])
    found = None if held is None else view_of(node, arguments(node)[0], held)
    return found is not None and lowering.bind(node, found.number, found.planes, found.last)


def permutation(lowering: Lowering, node: fx.Node) -> bool:
    """A permutation: to channels last or first, which copies nothing, or a channel shuffle."""
    held, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    if held is None or shape is None or view(lowering, node):
        return held is not None and shape is not None
    planes, order = held.planes, _order(node, len(shape))
    batch, groups, each = held.shape[0], *(held.shape[1:3] if len(shape) > 2 else (0, 0))
    right = (batch, groups * each) == (planes.batch, planes.channels) and not held.last
    if not right or order != [0, 2, 1, *range(3, len(shape))]:
        return False
    number = lowering.new_buffer(planes)
    for group in range(groups):
        part = _part(lowering, held, group * each, each)
        numbers = {"COPY_STRIDE": groups * planes.size}
        lowering.emit(Opcode.COPY, node, planes, part, into=number, at=group, numbers=numbers)
    return lowering.bind(node, number, planes)


def _part(lowering: Lowering, held: Buffer, begin: int, count: int) -> Buffer:
    """Return some planes of a buffer as a buffer that aliases it."""
    planes = replace(held.planes, channels=count)
    number = lowering.new_buffer(planes)
    lowering.aliases[number] = (held.number, begin)
    return replace(held, number=number, planes=planes)


def slicing(lowering: Lowering, node: fx.Node) -> bool:
    """A slice: of channels, which copies nothing, or of an image."""
    held, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    if held is None or shape is None or view(lowering, node):
        return held is not None and shape is not None
    args = (*arguments(node), *(None, 0, None, None, 1)[len(arguments(node)) :])
    dim, begin, step = args[1], args[2], args[4]
    dim, step = dim % len(shape), 1 if step is None else step
    begin = 0 if begin is None else max(begin + held.shape[dim] if begin < 0 else begin, 0)
    if dim == held.channel_dim and step == 1:
        found = _part(lowering, held, begin, shape[dim])
        return lowering.bind(node, found.number, found.planes, found.last)
    image = lowering.image(arguments(node)[0])
    if image is None or dim < 2:
        return False
    planes = lowering.image_planes(shape)
    row, column = (begin, 0) if dim == 2 else (0, begin)
    if step == 1:
        opcode, numbers = Opcode.PAD_CROP, {"PADDING_Y": row, "PADDING_X": column}
    else:
        opcode, numbers = Opcode.DECIMATE, {"PHASE_Y": row, "PHASE_X": column}
        numbers |= {"STRIDE_Y": step if dim == 2 else 1, "STRIDE_X": step if dim == 3 else 1}
    number = lowering.emit(opcode, node, planes, image, numbers=numbers, scalars=(0.0, 0.0))
    return lowering.bind(node, number, planes)


def splitting(lowering: Lowering, node: fx.Node) -> bool:
    """A split of the channels, which copies nothing."""
    held, made = lowering.buffers.get(arguments(node)[0]), node.meta.get("val")
    dim = arguments(node)[2] if len(arguments(node)) > 2 else 0
    users = list(node.users)
    if held is None or made is None or held.channel_dim is None or dim % len(held.shape) != held.channel_dim:
        return False
    if any(user.target is not getitem or shape_of(user) is None for user in users):
        return False
    counts = [one.shape[held.channel_dim] for one in made]
    lowering.done.add(node)
    for user in users:
        index = arguments(user)[1]
        found = _part(lowering, held, sum(counts[:index]), counts[index])
        lowering.bind(user, found.number, found.planes, found.last)
    return True


def concatenation(lowering: Lowering, node: fx.Node) -> bool:
    """A concatenation of channels: sources are written directly to their part if possible, else copied."""
    sources, shape = list(arguments(node)[0]), shape_of(node)
    dim = arguments(node)[1] if len(arguments(node)) > 1 else 0
    if dim not in (1, -3) or shape is None or len(shape) != 4 or not any(one in lowering.buffers for one in sources):
        return False
    images = [lowering.image(one) for one in sources]
    planes = lowering.image_planes(shape)
    found = [one for one in images if one is not None and replace(one.planes, channels=shape[1]) == planes]
    if len(found) < len(images):
        return False
    if len(found) == 1:
        return lowering.bind(node, found[0].number, planes)
    number = lowering.new_buffer(planes)
    begins = [sum(one.planes.channels for one in found[:index]) for index in range(len(found))]
    for one, begin in zip(found, begins, strict=True):
        if not _placed(lowering, one, begin, number, list(zip(found, begins, strict=True))):
            lowering.emit(Opcode.COPY, node, planes, one, into=number, at=begin)
    return lowering.bind(node, number, planes)


def _placed(lowering: Lowering, one: Buffer, begin: int, number: int, all_parts: Sequence[tuple[Buffer, int]]) -> bool:
    """Alias a buffer, with the buffer that contains it, to the planes of `number` from `begin` on, if that fits."""
    whole, inner = lowering.root(one.number)
    if whole == number:
        return inner == begin
    first = begin - inner
    fitting = {place for part, place in all_parts if lowering.root(part.number) == (whole, place - first)}
    covered = sum(part.planes.channels for part, place in all_parts if place in fitting)
    if first < 0 or covered != lowering.planes[whole].channels:
        return False
    lowering.aliases[whole] = (number, first)
    return True


def padding(lowering: Lowering, node: fx.Node) -> bool:
    """Constant padding of an image or its channels; negative padding crops."""
    amounts, value = arguments(node)[1], float(arguments(node)[2]) if len(arguments(node)) > 2 else 0.0
    shape = shape_of(node)
    if arguments(node)[0] not in lowering.buffers or shape is None or len(amounts) not in (2, 4, 6):
        return False
    source = lowering.image(arguments(node)[0])
    left, _, top, _, before, after = (*amounts, 0, 0, 0, 0)[:6]
    if source is None or before < 0 or after < 0:
        return False
    planes = lowering.image_planes(shape)
    window = {"PADDING_Y": -top, "PADDING_X": -left}
    number = lowering.emit(Opcode.PAD_CROP, node, planes, source, at=before, numbers=window, scalars=(value, value))
    for count, begin in ((before, 0), (after, shape[1] - after)):
        if count:
            # A window below the image, which contains only padding.
            window = {"PADDING_Y": source.planes.height, "CHANNELS": count}
            fields: dict[str, Any] = {"at": begin, "numbers": window, "scalars": (value, value)}
            lowering.emit(Opcode.PAD_CROP, node, planes, source, into=number, **fields)
    return lowering.bind(node, number, planes)


def upsampling(lowering: Lowering, node: fx.Node) -> bool:
    """Nearest-neighbour upsampling by whole factors."""
    x, shape = arguments(node)[0], shape_of(node)
    source = lowering.image(x) if x in lowering.buffers else None
    if source is None or shape is None or shape[2] % source.planes.height or shape[3] % source.planes.width:
        return False
    rows, columns = shape[2] // source.planes.height, shape[3] // source.planes.width
    given = ([one] if not isinstance(one, list | tuple) else one for one in arguments(node)[2:])
    scales = [scale for one in given for scale in one if scale is not None]
    if scales and scales != [rows, columns]:
        return False
    planes = lowering.image_planes(shape)
    factors = {"KERNEL_Y": rows, "KERNEL_X": columns}
    number = lowering.emit(Opcode.UPSAMPLE, node, planes, source, numbers=factors)
    return lowering.bind(node, number, planes)
