"""Lowering of poolings and means over pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..kernels.opcodes import Opcode
from ..kernels.planes import Planes
from .aten_graph import shape_of
from .builder import Lowering, arguments, first_result
from .views import view

aten = torch.ops.aten


def pooling(kind: Opcode, lowering: Lowering, node: fx.Node) -> bool:
    """A max (Opcode.MAX_POOL) or mean (Opcode.AVG_POOL) pooling, its size rounded up or down."""
    source = lowering.buffers.get(arguments(node)[0])
    target = first_result(lowering, node) if kind == Opcode.MAX_POOL else node
    shape = None if target is None else shape_of(target)
    if source is None or target is None:
        return False
    if lowering.image(arguments(node)[0]) is None or shape is None:
        return False
    numbers = _pool_numbers(kind, [*arguments(node)[1:]])
    if numbers is None:
        return False
    planes = lowering.image_planes(shape)
    number = lowering.emit(kind, node, planes, source, numbers=numbers)
    lowering.done.add(node)
    return lowering.bind(target, number, planes)


def _pool_numbers(kind: Opcode, given: list[Any]) -> dict[str, int] | None:
    """Return the columns of a pooling; None for one that is dilated."""
    kernel = _pair(given[0])
    stride = _pair(given[1]) if len(given) > 1 and given[1] else kernel
    padding = _pair(given[2]) if len(given) > 2 else (0, 0)
    rest = given[3:]
    divisor = 0
    if kind == Opcode.MAX_POOL:
        if rest and set(_pair(rest[0])) != {1}:
            return None
    else:
        counts_border = rest[1] if len(rest) > 1 else True
        divisor = rest[2] if len(rest) > 2 and rest[2] else -1 if counts_border else 0
    names = ("KERNEL_Y", "KERNEL_X", "STRIDE_Y", "STRIDE_X", "PADDING_Y", "PADDING_X", "DIVISOR")
    return dict(zip(names, (*kernel, *stride, *padding, divisor), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    both = [value] * 2 if isinstance(value, int) else list(value) * (2 // len(value))
    return both[0], both[1]


def mean(lowering: Lowering, node: fx.Node) -> bool:
    """A mean over the pixels of each plane; other dimensions are left to PyTorch."""
    source, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    if source is None or shape is None or not source.begins_with_channels or node.kwargs:
        return False
    dims = {dim % len(source.shape) for dim in (arguments(node)[1] if len(arguments(node)) > 1 else None) or ()}
    if not dims or dims != set(range(2, len(source.shape))):
        return False
    planes = Planes(source.planes.channels, 1, 1, lowering.pads.get((1, 1), 0) if len(shape) == 4 else 0, shape[0])
    number = lowering.emit(Opcode.MEAN, node, planes, source)
    return lowering.bind(node, number, planes)


def adaptive(lowering: Lowering, node: fx.Node) -> bool:
    """Adaptive average pooling to sizes that divide the image's."""
    source, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    if source is None or shape is None or view(lowering, node):
        return source is not None and shape is not None
    image = lowering.image(arguments(node)[0])
    if image is None or image.planes.height % shape[2] or image.planes.width % shape[3]:
        return False
    kernel = [image.planes.height // shape[2], image.planes.width // shape[3]]
    numbers = _pool_numbers(Opcode.AVG_POOL, [kernel])
    planes = lowering.image_planes(shape)
    number = lowering.emit(Opcode.AVG_POOL, node, planes, image, numbers=numbers or {})
    return lowering.bind(node, number, planes)
