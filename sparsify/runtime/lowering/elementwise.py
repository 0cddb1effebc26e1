"""Lowering of elementwise operations: activations, clamps, sums and products of activations or with constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..kernels.opcodes import Activation, Binary, Opcode
from .aten_graph import shape_of
from .builder import Lowering, arguments
from .ir import UNBOUNDED, Buffer

aten = torch.ops.aten
Affine = tuple[Tensor, Tensor]  # a scale and a shift for each channel, in float64


def clamp(lowering: Lowering, node: fx.Node) -> bool:
    """A clamp of each entry, ReLU among them."""
    source = lowering.buffers.get(arguments(node)[0])
    scalars = CLAMPS[node.target](*arguments(node)[1:])
    if source is None or scalars is None:
        return False
    return emit_binary(lowering, node, node, source, scalars=scalars)


def emit_binary(
    lowering: Lowering, node: fx.Node, last: fx.Node, source: Buffer, other: Buffer | None = None, **fields: Any
) -> bool:
    """Emit the BINARY that computes the value of `last` from the pixels that `node` reads, and from another buffer."""
    apart = other is None or lowering.root(other.number)[0] != lowering.root(source.number)[0]
    into = source.number if apart and lowering.reusable(node, source) else -1
    sources = (source,) if other is None else (source, other)
    number = lowering.emit(Opcode.BINARY, node, source.planes, *sources, into=into, **fields)
    return lowering.bind(last, number, source.planes, source.last)


def clamped(lowering: Lowering, node: fx.Node) -> tuple[fx.Node, tuple[float, float]]:
    """Return the clamp that follows a node and its scalars, or the node itself; a fused node is marked done."""
    user = lowering.only_user(node)
    scalars = CLAMPS[user.target](*arguments(user)[1:]) if user is not None and user.target in CLAMPS else None
    if user is None or scalars is None:
        return node, UNBOUNDED
    lowering.done.add(node)
    return user, scalars


def binary(how: Binary, lowering: Lowering, node: fx.Node) -> bool:
    """A sum, difference or product of two activations of one shape."""
    one, two = arguments(node)[:2]
    if node.kwargs or not isinstance(one, fx.Node) or not isinstance(two, fx.Node):
        return False
    held = lowering.buffers.get(one) or lowering.buffers.get(two)
    if held is None or shape_of(one) != shape_of(two):
        return how == Binary.PRODUCT and scaled(lowering, node, one, two)
    first, second = lowering.matching(one, held), lowering.matching(two, held)
    if first is None or second is None:
        return False
    if how != Binary.DIFFERENCE and not lowering.reusable(node, first):
        first, second = second, first
    last, scalars = clamped(lowering, node)
    return emit_binary(lowering, node, last, first, second, scalars=scalars, numbers={"FUNCTION": how})


def scaled(lowering: Lowering, node: fx.Node, one: fx.Node, two: fx.Node) -> bool:
    """A product with a number for each plane and image, with a following sum of planes fused in."""
    if shape_of(node) != shape_of(one):
        one, two = two, one
    shape, factors = shape_of(one), shape_of(two)
    if shape is None or len(shape) != 4 or factors != (*shape[:2], 1, 1) or shape_of(node) != shape:
        return False
    if one not in lowering.buffers and two not in lowering.buffers:
        return False
    source, each = lowering.image(one), lowering.image(two)
    if source is None or each is None:
        return False
    other, last = None, node
    user = lowering.only_user(node)
    if user is not None and (other := added(lowering, user, node, source)) is not None:
        last = user
    end, scalars = clamped(lowering, last)
    if last is not node:
        lowering.done.add(node)
    return emit_binary(lowering, node, end, source, other, scalars=scalars, factors=each)


def added(lowering: Lowering, user: fx.Node, node: fx.Node, held: Buffer) -> Buffer | None:
    """Return the planes that a sum adds to the value of `node`, None for any other operation."""
    if user.target is not aten.add.Tensor or user.kwargs or shape_of(user) != held.shape:
        return None
    other = arguments(user)[1] if arguments(user)[0] is node else arguments(user)[0]
    return lowering.matching(other, held) if isinstance(other, fx.Node) and other is not node else None


def activation(name: str, parameter: float, lowering: Lowering, node: fx.Node) -> bool:
    """An activation function; the operation's own parameter, where it has one, replaces `parameter`."""
    source, given = lowering.buffers.get(arguments(node)[0]), arguments(node)[1:]
    if source is None or any(isinstance(value, fx.Node) for value in given):
        return False
    kind, slope, factor = name, float(given[0]) if given and name != "gelu" else parameter, 1.0
    if name == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
        kind = "gelu_tanh"
    if name == "elu":
        factor, inner = (float(given[1]) if len(given) > 1 else 1.0), given[2] if len(given) > 2 else 1
        if inner != 1:
            return False
    into = source.number if lowering.reusable(node, source) else -1
    last = node
    while (user := lowering.only_user(last)) is not None and (times := _number(user, last)) is not None:
        lowering.done.add(last)
        factor, last = factor * times, user
    fields: dict[str, Any] = {"numbers": {"FUNCTION": Activation[kind.upper()]}, "scalars": (slope, factor)}
    number = lowering.emit(Opcode.ACTIVATION, node, source.planes, source, into=into, **fields)
    return lowering.bind(last, number, source.planes, source.last)


def _number(node: fx.Node, source: fx.Node) -> float | None:
    """Return the number by which an operation multiplies its source, None for any other operation."""
    args = arguments(node)
    if node.target is not aten.mul.Tensor or args[0] is not source or not isinstance(args[1], int | float):
        return None
    return float(args[1])


def affine(lowering: Lowering, node: fx.Node, source: fx.Node, buffer: Buffer) -> Affine | None:
    """Return scale and shift per channel of a sum, difference, product or quotient with constants; None for others."""
    if node.target not in AFFINE or shape_of(node) != buffer.shape or set(node.kwargs) - {"alpha"}:
        return None
    one, two = arguments(node)[:2]
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(alpha, int | float) or (one is source) == (two is source):
        return None
    values = _per_channel(lowering, two if one is source else one, buffer)
    return None if values is None else AFFINE[node.target](values, alpha, one is source)


def _per_channel(lowering: Lowering, value: Any, buffer: Buffer) -> Tensor | None:
    """Return a constant as one number for each channel, None if it is not constant or varies within a channel."""
    count = buffer.planes.channels
    if isinstance(value, fx.Node):
        value = lowering.constants.get(value)
    if isinstance(value, int | float):
        return torch.full((count,), float(value), dtype=torch.float64)
    if (
        not isinstance(value, Tensor)
        or value.dtype not in (torch.float32, torch.int64)
        or value.dim() > len(buffer.shape)
    ):
        return None
    sizes = [1] * (len(buffer.shape) - value.dim()) + list(value.shape)
    if any(size != 1 and dim != buffer.channel_dim for dim, size in enumerate(sizes)):
        return None
    return value.double().reshape(-1).expand(count)


AFFINE: dict[Any, Callable[[Tensor, float, bool], Affine | None]] = {
    aten.mul.Tensor: lambda c, alpha, first: (c, torch.zeros_like(c)),
    aten.div.Tensor: lambda c, alpha, first: (1 / c, torch.zeros_like(c)) if first else None,
    aten.add.Tensor: lambda c, alpha, first: (
        (torch.ones_like(c), alpha * c) if first else (torch.full_like(c, alpha), c)
    ),
    aten.sub.Tensor: lambda c, alpha, first: (
        (torch.ones_like(c), -alpha * c) if first else (torch.full_like(c, -alpha), c)
    ),
    aten.rsub.Scalar: lambda c, alpha, first: (torch.full_like(c, -alpha), c),
}


def _between(low: Any = None, high: Any = None) -> tuple[float, float] | None:
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    scalars = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return scalars if scalars[0] <= scalars[1] else None


CLAMPS: dict[Any, Callable[..., tuple[float, float] | None]] = {
    aten.relu.default: lambda: (0.0, math.inf),
    aten.hardtanh.default: lambda low=-1.0, high=1.0: _between(low, high),
    aten.clamp.default: _between,
    aten.clamp_min.default: lambda low: _between(low),
    aten.clamp_max.default: lambda high: _between(None, high),
}

ACTIVATIONS: dict[Any, Callable[[Lowering, fx.Node], bool]] = {
    aten.sigmoid.default: partial(activation, "sigmoid", 0.0),
    aten.silu.default: partial(activation, "silu", 0.0),
    aten.gelu.default: partial(activation, "gelu", 0.0),
    aten.tanh.default: partial(activation, "tanh", 0.0),
    aten.hardsigmoid.default: partial(activation, "hardsigmoid", 0.0),
    aten.hardswish.default: partial(activation, "hardswish", 0.0),
    aten.leaky_relu.default: partial(activation, "leaky_relu", 0.01),
    aten.elu.default: partial(activation, "elu", 1.0),
    aten.mish.default: partial(activation, "mish", 0.0),
}
