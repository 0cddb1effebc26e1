"""Liveness of element-wise operations: where their results are zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import expand_rank
from ..recording.ops import Op, Value

# f(0) = 0
ZERO_STAYS = frozenset(
    "relu gelu silu hardswish tanh neg abs leaky_relu elu celu selu erf sqrt sign floor ceil round trunc mish "
    "softshrink hardshrink sin asin atan sinh asinh tan square expm1 log1p nan_to_num relu6 positive".split()
)


def pointwise_flags(live: Liveness, op: Op) -> Tensor:
    """Return the flags of an element-wise operation's result."""
    name = op.name.rstrip("_")
    rank = len(op.results[0].shape)
    flags = [expand_rank(live.of(value), rank) for value in op.inputs]
    first = flags[0]
    if name == "copy":
        return indicator(flags[1] + 0 * first)
    if name in ("mul", "div", "_prelu_kernel"):
        return _product(live, op, flags, name)
    if name in ("add", "sub", "maximum", "minimum", "fmod", "hypot"):
        shifted = 1.0 if any(_number(argument) and argument != 0 for argument in op.args) else 0.0
        return indicator(sum(flags[1:], first) + shifted)
    if name == "masked_fill":
        filled = flags[2] if len(flags) == 3 else float(op.args[2] != 0)
        return indicator((first + filled) * (flags[1] + 1))
    if name == "addcmul" and not any(value.constant is not None for value in op.inputs[1:]):
        return indicator(first + flags[1] * flags[2])
    if name == "where":
        condition, *branches = flags
        return indicator(sum(branches, torch.zeros(())) * (condition + 1))
    if len(flags) == 1 and zero_stays(op):
        return first.clone()
    return indicator(sum(flags[1:], first) + 1)


def _number(argument: Any) -> bool:
    return isinstance(argument, (bool, int, float, complex))


def _product(live: Liveness, op: Op, flags: list[Tensor], name: str) -> Tensor:
    """Return the flags of a product: zero where a factor is zero, unless another is inf or NaN (0 * inf, 0 / 0)."""
    if len(flags) == 1:
        scalars = [argument for argument in op.args if _number(argument)]
        plain = isinstance(op.args[0], Value) and all(math.isfinite(abs(s)) and (s or name == "mul") for s in scalars)
        return flags[0].clone() if plain else indicator(flags[0] + 1)
    first, second = flags
    wild = torch.zeros(())
    for value in op.inputs:
        if value.constant is not None and value.constant.is_floating_point():
            finite = live.constant(value).isfinite()
            if not finite.all():
                wild = wild + expand_rank((~finite).to(torch.float32), first.dim())
    if name == "div":
        return indicator(first * (second + 1) + (1 - second.detach()) + wild)
    return indicator(first * (second + 1 if name == "_prelu_kernel" else second) + wild)


def zero_stays(op: Op) -> bool:
    """Return whether an operation on one tensor returns zero for zero."""
    name = op.name.rstrip("_")
    if name == "pow":
        power = op.args[1] if len(op.args) > 1 else None
        return isinstance(op.args[0], Value) and isinstance(power, (int, float)) and power > 0
    given = {**dict(zip(("min", "max"), op.args[1:], strict=False)), **op.kwargs}
    if name == "hardtanh":
        given = {"min": given.get("min", given.get("min_val", -1)), "max": given.get("max", given.get("max_val", 1))}
    if name == "clamp_max":
        given = {"max": given.get("min", given.get("max"))}
    if name in ("clamp", "hardtanh", "clamp_min", "clamp_max"):
        low, high = given.get("min"), given.get("max")
        return (low is None or low <= 0) and (high is None or high >= 0)
    return name in ZERO_STAYS
