"""Rules of normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..dataflow.constants import BATCH_NORMS
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import along, expand_rank, varying
from ..recording.ops import Op, Value


def _batch_norm_operands(op: Op) -> tuple[Value, Value | None, Value | None, list[Value]]:
    value, weight, bias, *rest = op.args
    return value, weight, bias, [v for v in rest if isinstance(v, Value)]


def _couple_batch_norm(coupling: Coupling, op: Op) -> None:
    value, weight, bias, statistics = _batch_norm_operands(op)
    tensors = [v for v in (weight, bias, *statistics) if v is not None]
    _couple_affine(coupling, op, coupling.of(value), tensors, 1)
    for v in (weight, bias):
        if v is not None:
            coupling.produced += coupling.of(v)


def _couple_affine(coupling: Coupling, op: Op, found: list[Tensor], tensors: list[Value], dim: int) -> None:
    """Set the result's axes to `found`; join the vectors with the axis along `dim`, or pin them if there is none."""
    result = op.results[0]
    rank = len(result.shape)
    axes = [axis for axis in found if dim in varying(axis)]
    for v in tensors:
        for own in coupling.of(v):
            if axes and len(v.shape) == 1:
                coupling.numbers.union(along(own, dim, rank), axes[0])
            else:
                coupling.numbers.pin(own)
        if not coupling.of(v) and axes and v.shape != (1,):
            coupling.numbers.pin(axes[0])
    coupling.set(result, found)


def _flow_batch_norm(live: Liveness, op: Op) -> None:
    """Set the flags of (x - mean) / std * weight + bias: zero if x, mean and bias are zero, or weight and bias."""
    value, weight, bias, statistics = _batch_norm_operands(op)

    def nonzero(v: Value | None, otherwise: float) -> Tensor:
        if v is None:
            return torch.full([1] * len(value.shape), otherwise)
        return along(live.of(v), 1, len(value.shape))

    scale = nonzero(weight, 1.0)
    mean = nonzero(statistics[0] if statistics else None, 0.0)
    live.set(op.results[0], indicator(live.of(value) * scale + mean * scale + nonzero(bias, 0.0)))
    _set_statistics(live, op)


def _set_statistics(live: Liveness, op: Op) -> None:
    for result in op.results[1:]:
        live.set(result, torch.ones([1] * len(result.shape)))


def _couple_layer_norm(coupling: Coupling, op: Op) -> None:
    value, normalized, *rest = op.args
    rank, count = len(value.shape), len(normalized)
    left = coupling.depend(value, range(rank - count, rank))
    for v in rest:
        if isinstance(v, Value):
            coupling.pin(v)
    coupling.set(op.results[0], left)


def _flow_layer_norm(live: Liveness, op: Op) -> None:
    value, normalized, weight, bias = op.args[:4] if op.name == "native_layer_norm" else (*op.args[:3], None)
    dims = list(range(len(value.shape) - len(normalized), len(value.shape)))
    _flow_normalised(live, op, indicator(live.of(value).sum(dims, keepdim=True)), weight, bias, len(value.shape))


def _flow_normalised(
    live: Liveness,
    op: Op,
    flags: Tensor,
    weight: Value | None,
    bias: Value | None,
    rank: int,
    dim: int | None = None,
) -> None:
    def placed(v: Value) -> Tensor:
        return expand_rank(live.of(v), rank) if dim is None else along(live.of(v), dim, rank)

    if weight is not None:
        flags = flags * placed(weight)
    if bias is not None:
        flags = flags + placed(bias)
    live.set(op.results[0], indicator(flags))
    _set_statistics(live, op)


def _couple_group_norm(coupling: Coupling, op: Op) -> None:
    value, weight, bias, _, channels, _, groups, *_ = op.args
    left = []
    for axis in coupling.of(value):
        if 1 not in varying(axis):
            left.append(axis)
        elif groups == 1 or varying(axis) != (1,):
            coupling.numbers.pin(axis)
        else:
            grouped = axis.reshape(groups, channels // groups)
            coupling.numbers.union(grouped, grouped[:, :1])
            left.append(axis)
    vectors = [v for v in (weight, bias) if v is not None]
    _couple_affine(coupling, op, left, vectors, 1)
    for v in vectors:
        coupling.produced += coupling.of(v)


def _flow_group_norm(live: Liveness, op: Op) -> None:
    value, weight, bias, _, channels, _, groups, *_ = op.args
    rank = len(value.shape)
    flags = live.of(value)
    flags = flags.sum([d for d in range(rank) if d != 1], keepdim=True).expand(1, channels, *[1] * (rank - 2))
    whole = flags.reshape(groups, -1).sum(1, keepdim=True).expand(groups, channels // groups).reshape(flags.shape)
    _flow_normalised(live, op, indicator(whole), weight, bias, rank, dim=1)


def _couple_weight_norm(coupling: Coupling, op: Op) -> None:
    """Couple weight * length / |weight|, with the norm taken over all dimensions except one."""
    weight, length, *rest = op.args
    dim = rest[0] if rest else 0
    left = coupling.depend(weight, [d for d in range(len(weight.shape)) if d != dim])
    _couple_affine(coupling, op, left, [], dim)
    for own in coupling.of(length):
        for axis in left:
            coupling.numbers.union(own, axis)


def _flow_weight_norm(live: Liveness, op: Op) -> None:
    weight, length, *_ = op.args
    for result in op.results:
        live.set(
            result, indicator(live.of(weight).sum() + live.of(length).sum() + 1).expand([1] * len(result.shape)).clone()
        )


NORMS = {
    "_weight_norm_interface": (_couple_weight_norm, _flow_weight_norm),
    **dict.fromkeys(BATCH_NORMS, (_couple_batch_norm, _flow_batch_norm)),
    "native_layer_norm": (_couple_layer_norm, _flow_layer_norm),
    "_fused_rms_norm": (_couple_layer_norm, _flow_layer_norm),
    "native_group_norm": (_couple_group_norm, _flow_group_norm),
}
