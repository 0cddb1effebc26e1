"""Constant propagation over the recorded operations: the value of each entry that no input affects.

In addition to its flags, a Value has a float64 broadcast form of known values, NaN where an entry depends on the input.
The analysis is conservative: after an operation without a transfer function here, every entry that may be nonzero is
NaN.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..recording import broadcast_forms as forms
from ..recording.broadcast_forms import expand_rank
from ..recording.ops import Noise, Op, Value, concat_inputs, dims_of
from ..tracing.one_forward import map_leaves

if TYPE_CHECKING:
    from .liveness import Liveness

_ENTRYWISE = frozenset(
    "add sub rsub mul div pow neg abs square sqrt rsqrt reciprocal exp expm1 log log1p sin cos erf sigmoid tanh relu "
    "gelu silu mish elu celu selu leaky_relu softplus softshrink hardshrink log_sigmoid hardswish hardsigmoid hardtanh "
    "threshold clamp clamp_min clamp_max maximum minimum _prelu_kernel where masked_fill lt le gt ge eq ne sign floor "
    "ceil round trunc frac heaviside fmod remainder lerp addcmul addcdiv exp2 log2 log10 tan asin acos atan sinh cosh "
    "asinh acosh atanh erfc nan_to_num".split()
)
_CONDITIONS = {"where": 0, "masked_fill": 1}  # operation -> position of its bool argument
BATCH_NORMS = "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training".split()
AVERAGES = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
# Applied to one value at every position, these return that value: over space, or over the dimensions that they name.
# The table of rules has a row for each name in these lists.
OVER_SPACE = (
    "max_pool1d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
).split()
OVER_DIMENSIONS = ("mean", "amax", "amin")


def propagate(live: Liveness, op: Op) -> None:
    """Store in `live.known_values` the known values of an operation's results; their flags must be set before."""
    if not op.results or all(value.constant is not None for value in op.results):
        return
    known = (
        [live.known_values[value] for value in op.results]
        if op.results[0] in live.known_values
        else _transfer(live, op)
    )
    for value, form in zip(op.results, known or (), strict=False):
        live.known_values.pop(value, None)
        if form is None or value not in live.flags:
            continue
        told = (live.flags[value].detach() > 0) & ~form.isnan()
        if not told.any():
            continue  # only the zeros that the flags show
        live.known_values[value] = torch.where(live.flags[value].detach() > 0, form, 0.0)
        if any(source in live.depends_on_learnt or _is_shared_scalar(live, source) for source in op.inputs):
            live.depends_on_learnt.add(value)
        elif bool((zero := told & (form == 0)).any()):  # such as negative constants after a ReLU
            live.set(value, live.flags[value] * (~zero).to(torch.float32))


def _is_shared_scalar(live: Liveness, value: Value) -> bool:
    """Return whether a Value is a single learnt number that all channels share, so it goes with none of them."""
    return live.learning and value.trainable and math.prod(value.shape) == 1 and value.names[0] not in live.masks


def known_value(live: Liveness, value: Value) -> Tensor:
    """Return the known values of a Value, a float64 form with NaN where an entry is unknown."""
    if value in live.known_values:
        return live.known_values[value]
    if value.constant is None:
        return torch.where(live.of(value).detach() > 0, math.nan, 0.0).to(torch.float64)
    if value.constant.is_complex() or isinstance(value, Noise):
        return torch.full([1] * len(value.shape), math.nan, dtype=torch.float64)
    if live.learning and value.trainable and not _is_shared_scalar(live, value):
        kept = live.masks.get(value.names[0], torch.ones([1] * len(value.shape), dtype=torch.bool))
        return torch.where(kept, math.nan, 0.0).to(torch.float64)
    if value.names or live.as_stored or value not in live.recording.producers:
        form = live.constant(value).to(torch.float64)
        return form if value.names else forms.compress(form)  # one computed by an expand is as long as the batch
    # Computed from masked parameters: rarely needed and too large to store.
    op = live.recording.producers[value]
    known = (_transfer(live, op) or [None] * len(op.results))[op.results.index(value)]
    return torch.full([1] * len(value.shape), math.nan, dtype=torch.float64) if known is None else known


def only_zeros_known(live: Liveness, value: Value) -> bool:
    """Return whether the only known entries of a Value are the zeros that its flags show."""
    return value.constant is None and value not in live.known_values


def _nothing_known(live: Liveness, value: Value) -> bool:
    """Return whether no entry of a Value is known."""
    return only_zeros_known(live, value) and bool(live.of(value).all())


def _transfer(live: Liveness, op: Op) -> list[Tensor | None] | None:
    """Return the known values of each result, None for a result (or for all) if only the flags are known."""
    name = _family(op)
    if op.is_movement:
        return None if only_zeros_known(live, op.args[0]) else _moved(live, op)
    if name == "copy":
        return [expand_rank(known_value(live, op.args[1]), len(op.results[0].shape))]
    if name in _ENTRYWISE:
        return _entry_by_entry(live, op)
    if op.name in ("cat", "stack"):
        return _joined(live, op)
    if op.name in BATCH_NORMS:
        return [_normalised(live, op), *[None] * (len(op.results) - 1)]
    if not isinstance(op.args[0], Value) or only_zeros_known(live, op.args[0]):
        return None
    if op.name in OVER_SPACE or (op.name in AVERAGES and _plain_average(op)):
        space = next(int(c) for c in op.name if c in "123")
        rank = len(op.args[0].shape)
        form = uniform(known_value(live, op.args[0]), range(rank - space, rank))
        return [form, *[None] * (len(op.results) - 1)]
    if op.name in OVER_DIMENSIONS:
        return [_reduced(live, op)]
    return None


def _family(op: Op) -> str:
    """Return the name of an element-wise operation without the suffixes of its variants."""
    return op.name.removesuffix("_forward").rstrip("_")


def uniform(form: Tensor, dims: range | list[int]) -> Tensor:
    """Return a form reduced along `dims` to the common value of its entries, NaN if they differ."""
    if not dims or all(form.shape[d] == 1 for d in dims):
        return form
    low, high = form.amin(list(dims), keepdim=True), form.amax(list(dims), keepdim=True)
    return torch.where(low == high, low, math.nan)


def _moved(live: Liveness, op: Op) -> list[Tensor | None] | None:
    value, rest = op.args[0], op.constant_args
    form = known_value(live, value)
    if rest is None or form.isnan().all():
        return None
    if op.name in forms.SPLITS:
        return list(forms.split(op.name, form, value.shape, rest, op.overload, len(op.results)))
    return [forms.MOVEMENTS[op.name](form, value.shape, op.results[0].shape, rest, op.overload)]


def _entry_by_entry(live: Liveness, op: Op) -> list[Tensor | None] | None:
    # The functional variant, since an in-place operation would write to the forms.
    family_name = _family(op)
    family = getattr(torch.ops.aten, family_name, None)
    operation = getattr(family, op.overload._overloadname, None)
    condition = op.args[_CONDITIONS[family_name]] if family_name in _CONDITIONS else op
    if operation is None or any(_nothing_known(live, value) for value in op.inputs):
        return None

    def outcome(given: dict[Value, Tensor]) -> Tensor:
        def form_of(leaf: Any) -> Any:
            form = given[leaf] if isinstance(leaf, Value) else leaf
            return form != 0 if leaf is condition else form

        made: Tensor = operation(*map_leaves(op.args, form_of), **map_leaves(op.kwargs, form_of))
        return made.to(torch.float64)

    rank = len(op.results[0].shape)
    if all(only_zeros_known(live, value) for value in op.inputs):
        of_zeros = outcome({value: torch.zeros((), dtype=torch.float64) for value in op.inputs})
        if not of_zeros:
            return None
        moving = [expand_rank(live.of(value).detach(), rank) > 0 for value in op.inputs]
        return [torch.where(functools.reduce(torch.logical_or, moving), math.nan, of_zeros)]
    given = {value: expand_rank(known_value(live, value), rank) for value in op.inputs}
    lost = functools.reduce(torch.logical_or, [form.isnan() for form in given.values()])
    return None if lost.all() else [torch.where(lost, math.nan, outcome(given))]


def _joined(live: Liveness, op: Op) -> list[Tensor | None] | None:
    values = concat_inputs(op)
    if all(only_zeros_known(live, value) for value in values):
        return None
    rank = len(op.results[0].shape)
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % rank
    if op.name == "cat":
        return [forms.concat([known_value(live, v) for v in values], [v.shape for v in values], dim)]
    shapes = [(*v.shape[:dim], 1, *v.shape[dim:]) for v in values]
    return [forms.concat([known_value(live, v).unsqueeze(dim) for v in values], shapes, dim)]


def _normalised(live: Liveness, op: Op) -> Tensor | None:
    value, weight, bias, mean, variance, *rest = op.args
    if not isinstance(mean, Value) or not isinstance(variance, Value) or rest[0] is True:
        return None
    if live.learning and all(v is not None and v.trainable and math.prod(v.shape) > 1 for v in (weight, bias)):
        return None  # only zeros of a learnt scale and shift are known, and the flags show them
    rank = len(value.shape)
    if only_zeros_known(live, value):
        moving = live.of(value) if weight is None else live.of(value) * forms.along(live.of(weight), 1, rank)
        if not bool((live.flags[op.results[0]] > moving).any()):
            return None

    def by_channel(v: Value) -> Tensor:
        return forms.along(known_value(live, v).expand(v.shape), 1, rank)

    scale = (by_channel(variance) + rest[-1]).rsqrt() * (1.0 if weight is None else by_channel(weight))
    form = torch.where(scale == 0, 0.0, (known_value(live, value) - by_channel(mean)) * scale)
    return form if bias is None else form + by_channel(bias)


def _plain_average(op: Op) -> bool:
    """Return whether an average pooling divides all sums by the same count: no padding, ceil_mode, divisor_override."""
    padding, ceiled, divisor = ([*op.args[3:], *[0] * 4][i] for i in (0, 1, 3))
    return not (any(padding) if isinstance(padding, (list, tuple)) else padding) and not ceiled and not divisor


def _reduced(live: Liveness, op: Op) -> Tensor | None:
    value, result = op.args[0], op.results[0]
    dims = dims_of(op, value)
    form = uniform(known_value(live, value), dims)
    return (
        form
        if len(result.shape) == form.dim()
        else form.reshape([n for d, n in enumerate(form.shape) if d not in dims])
    )
