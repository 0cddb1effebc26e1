"""Operator fusion: the epilogue of a conv or linear kernel is norm scale and shift, residual, clamp and views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..kernels.planes import Planes
from .aten_graph import shape_of
from .builder import Lowering, arguments, first_result
from .elementwise import CLAMPS, Affine, added, affine
from .ir import UNBOUNDED, Buffer
from .views import view_of

aten = torch.ops.aten
NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)


@dataclass(frozen=True)
class Epilogue:
    """The operations fused into a conv or linear kernel: a norm's scale and shift, a residual, a clamp."""

    scale: Tensor | None
    shift: Tensor | None
    residual: int | None
    free: bool  # whether nothing else reads the residual, so that the result may overwrite it
    scalars: tuple[float, float]
    node: fx.Node  # the last fused node, whose value the result is
    last: bool  # whether its tensor has channels last


def fuse_epilogue(lowering: Lowering, node: fx.Node, planes: Planes, last: bool) -> Epilogue:
    """Return the operations after a conv or linear node that its kernel can compute as well."""
    change: Affine | None = None
    residual, free, scalars = None, False, UNBOUNDED
    shape = shape_of(node)
    assert shape is not None
    held = Buffer(-1, planes, shape, last)
    while (user := lowering.only_user(node)) is not None:
        if (other := view_of(user, node, held)) is not None:
            held, node = other, user
        elif residual is None and (found := _change(lowering, user, node, held)) is not None:
            node, change = found[0], found[1] if change is None else composed(change, found[1])
        elif residual is None and (other := added(lowering, user, node, held)) is not None:
            residual, free, node = other.number, lowering.reusable(user, other), user
        else:
            clamped = CLAMPS[user.target](*arguments(user)[1:]) if user.target in CLAMPS else None
            if clamped is not None:
                scalars, node = clamped, user
            break
    scale, shift = change or (None, None)
    return Epilogue(scale, shift, residual, free, scalars, node, held.last)


def _change(lowering: Lowering, user: fx.Node, node: fx.Node, held: Buffer) -> tuple[fx.Node, Affine] | None:
    """Return the result of a norm, or of an operation with constants, on a buffer, with its scale and shift."""
    if user.target in NORMS:
        affected, result = norm(lowering, user), first_result(lowering, user)
        fits = arguments(user)[0] is node and held.begins_with_channels
        return (result, affected) if affected is not None and result is not None and fits else None
    found = affine(lowering, user, node, held)
    return None if found is None else (user, found)


def norm(lowering: Lowering, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of a batch norm in eval mode, in float64; None for any other node."""
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


def composed(first: Affine, second: Affine) -> Affine:
    """Return scale and shift of `first` followed by `second`."""
    return first[0] * second[0], first[1] * second[0] + second[1]
