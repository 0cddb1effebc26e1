"""Operations without weights: sums, clamps, poolings, concatenations, other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .graph import shape_of
from .layout import Planes
from .lower import UNBOUNDED, Lowering, Step, arguments, first_result

aten = torch.ops.aten


def clamp(lowering: Lowering, node: fx.Node) -> bool:
    source = lowering.buffers.get(arguments(node)[0])
    limits = CLAMPS[node.target](*arguments(node)[1:])
    if source is None or limits is None:
        return False
    number = lowering.new(source.planes)
    lowering.steps.append(Step("ADD", node.name, source.planes, source.planes, (source.number,), number, limits=limits))
    return lowering.give(node, number, source.planes)


def add(lowering: Lowering, node: fx.Node) -> bool:
    held = [lowering.buffers.get(arg) for arg in arguments(node) if isinstance(arg, fx.Node)]
    if node.kwargs or len(held) != 2 or held[0] is None or held[1] is None:
        return False
    planes = held[0].planes
    if held[1].planes != planes or held[0].shape != held[1].shape:
        return False
    number, limits, last = lowering.new(planes), UNBOUNDED, node
    user = lowering.only_user(node)
    found = CLAMPS[user.target](*arguments(user)[1:]) if user is not None and user.target in CLAMPS else None
    if user is not None and found is not None:
        limits, last = found, user
        lowering.done.add(node)
    reads = (held[0].number, held[1].number)
    lowering.steps.append(Step("ADD", node.name, planes, planes, reads, number, limits=limits))
    return lowering.give(last, number, planes)


def view(lowering: Lowering, node: fx.Node) -> bool:
    """Another shape of the same elements in the same order: nothing is to be done."""
    source, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    if source is None or shape is None:
        return False
    return lowering.give(node, source.number, source.planes)


def pooling(kind: str) -> Callable[[Lowering, fx.Node], bool]:
    def rule(lowering: Lowering, node: fx.Node) -> bool:
        source = lowering.buffers.get(arguments(node)[0])
        target = first_result(lowering, node) if kind == "LARGEST" else node
        shape = None if target is None else shape_of(target)
        if source is None or target is None:
            return False
        if lowering.image(arguments(node)[0]) is None or shape is None:
            return False
        numbers = _pool_numbers(kind, [*arguments(node)[1:]])
        if numbers is None:
            return False
        planes = lowering.of_image(shape)
        number = lowering.new(planes)
        lowering.steps.append(Step(kind, node.name, planes, source.planes, (source.number,), number, numbers=numbers))
        lowering.done.add(node)
        return lowering.give(target, number, planes)

    return rule


def _pool_numbers(kind: str, given: list[Any]) -> dict[str, int] | None:
    """Return the columns of a pooling; None for one that is rounded up or dilated."""
    kernel = _pair(given[0])
    stride = _pair(given[1]) if len(given) > 1 and given[1] else kernel
    margin = _pair(given[2]) if len(given) > 2 else (0, 0)
    rest = given[3:]
    divisor = 0
    if kind == "LARGEST":
        if rest and set(_pair(rest[0])) != {1}:
            return None
    else:
        if rest and rest[0]:
            return None
        counts_border = rest[1] if len(rest) > 1 else True
        divisor = rest[2] if len(rest) > 2 and rest[2] else kernel[0] * kernel[1] if counts_border else 0
    names = ("KERNEL_ROWS", "KERNEL", "STRIDE_ROWS", "STRIDE", "MARGIN_ROWS", "MARGIN", "DIVISOR")
    return dict(zip(names, (*kernel, *stride, *margin, divisor), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    both = [value] * 2 if isinstance(value, int) else list(value) * (2 // len(value))
    return both[0], both[1]


def mean(lowering: Lowering, node: fx.Node) -> bool:
    source, shape = lowering.buffers.get(arguments(node)[0]), shape_of(node)
    dims = {dim % 4 for dim in (arguments(node)[1] if len(arguments(node)) > 1 and arguments(node)[1] else ())}
    if source is None or shape is None or lowering.image(arguments(node)[0]) is None or dims != {2, 3} or node.kwargs:
        return False
    planes = Planes(source.planes.channels, 1, 1, lowering.pads.get((1, 1), 0) if len(shape) == 4 else 0, shape[0])
    number = lowering.new(planes)
    lowering.steps.append(Step("MEAN", node.name, planes, source.planes, (source.number,), number))
    return lowering.give(node, number, planes)


def concatenation(lowering: Lowering, node: fx.Node) -> bool:
    parts, shape = list(arguments(node)[0]), shape_of(node)
    dim = arguments(node)[1] if len(arguments(node)) > 1 else 0
    held = [lowering.buffers.get(part) for part in parts]
    if dim not in (1, -3) or shape is None or len(shape) != 4 or any(one is None for one in held):
        return False
    images = [lowering.image(part) for part in parts]
    planes = lowering.of_image(shape)
    if any(one is None or one.planes.pitch != planes.pitch or one.planes.pad != planes.pad for one in images):
        return False
    number, at = lowering.new(planes), 0
    for one in images:
        assert one is not None
        lowering.steps.append(Step("COPY", node.name, planes, one.planes, (one.number,), number, at=at))
        at += one.planes.channels
    return lowering.give(node, number, planes)


def _between(low: Any = None, high: Any = None) -> tuple[float, float] | None:
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return limits if limits[0] <= limits[1] else None


CLAMPS: dict[Any, Callable[..., tuple[float, float] | None]] = {
    aten.relu.default: lambda: (0.0, math.inf),
    aten.hardtanh.default: lambda low=-1.0, high=1.0: _between(low, high),
    aten.clamp.default: _between,
    aten.clamp_min.default: lambda low: _between(low),
    aten.clamp_max.default: lambda high: _between(None, high),
}
