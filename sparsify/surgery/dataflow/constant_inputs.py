"""Constant channels that enter weighted sums, and the known values of those sums.

In the analysis, an operation that can absorb constants into its bias (`bias_sinks`) does not read constant channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..recording.broadcast_forms import along, expand_rank
from ..recording.ops import Op, Value
from .constants import known_value, only_zeros_known, uniform

if TYPE_CHECKING:
    from .liveness import Liveness


def constant_inputs(live: Liveness, op: Op) -> Tensor | None:
    """Return which input channels of a bias sink hold one nonzero value everywhere, float 0/1 [channels].

    Also stores them, as bool, in `live.constant_channels`. Returns None if there are none or `op` is not a bias sink.
    """
    sink = live.bias_sinks.get(op)
    if sink is None or only_zeros_known(live, sink.value) or 0 in sink.value.shape:  # no row shows what to absorb
        return None
    values = _entering_values(live, op)
    constant = ~values.isnan() & (_may_be_nonzero(live, op) if live.depends_on_learnt else values != 0)
    if not constant.any():
        return None
    live.constant_channels[op] = constant
    return constant.to(torch.float32)


def _entering_values(live: Liveness, op: Op) -> Tensor:
    """Return the value that each input channel of a bias sink holds at all positions, NaN if it is not constant."""
    sink = live.bias_sinks[op]
    form = known_value(live, sink.value)
    form = uniform(form, [d for d in range(form.dim()) if d != sink.dim])
    return form.reshape(-1).expand(sink.value.shape[sink.dim])


def _weight_columns(live: Liveness, weight: Value, wanted: Tensor) -> Tensor:
    """Return the `wanted` columns of a weight under its mask, float64, with NaN for entries that may still learn."""
    assert weight.constant is not None
    columns = weight.constant[:, wanted].to(torch.float64)
    kept = live.masks.get(weight.names[0])
    if live.learning and weight.trainable:
        columns = torch.full_like(columns, math.nan)
    return columns if kept is None else torch.where(kept.expand(weight.shape)[:, wanted], columns, 0)


def _may_be_nonzero(live: Liveness, op: Op) -> Tensor:
    """Return which input channels of a bias sink may be nonzero, bool: a learnt constant may be zero only now."""
    sink = live.bias_sinks[op]
    flags = live.of(sink.value).detach()
    dims = [d for d in range(flags.dim()) if d != sink.dim]
    return (flags.amax(dims) if dims else flags).reshape(-1).expand(sink.value.shape[sink.dim]) > 0


def propagate_sum(live: Liveness, op: Op, moving: Tensor, added: Value | None, dim: int) -> None:
    """Store the known values of a weighted sum, whose channels lie along `dim`: `added` plus the constant channels.

    `moving` is positive where a channel that depends on the input contributes; the sum is unknown there.
    """
    result = op.results[0]
    moving = moving.detach() > 0
    if moving.all() or result.constant is not None:
        return
    rank = len(result.shape)
    total = torch.zeros([1] * rank, dtype=torch.float64)
    if added is not None:
        form = known_value(live, added)
        total = expand_rank(form, rank) if len(added.shape) != 1 else along(form, dim, rank)
    if op in live.constant_channels:
        constant = live.constant_channels[op]
        kernel = _weight_columns(live, live.bias_sinks[op].weight, constant)
        sums = kernel.flatten(2).sum(2) if kernel.dim() > 2 else kernel
        total = total + along(sums @ _entering_values(live, op)[constant], dim, rank)
    live.known_values[result] = torch.where(moving, math.nan, total)
