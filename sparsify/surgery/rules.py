"""One row per operation: how it couples channels, and which entries can matter through it.

`couple` enters in a Coupling which channels go together, `flow` enters in a Liveness the flags of the results.
Operations that only move entries are in `axes.MOVES`; what works entry by entry has a common rule here; an operation
with no rule is a barrier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import axes as forms
from .coupling import Coupling, constants, varying
from .liveness import Liveness, spread
from .products import PRODUCTS
from .tape import SCALED_BY_SIZE, Step, Value


class Rule(NamedTuple):
    """What is known of one operation."""

    couple: Callable[[Coupling, Step], None]
    flow: Callable[[Liveness, Step], None]


_ENTRYWISE = ("copy", "fill", "masked_fill", "_prelu_kernel", "where", "hardswish", "hardsigmoid", "mish", "log_sigmoid")
# f(0) = 0
ZERO_STAYS = frozenset(
    "relu gelu silu hardswish tanh neg abs leaky_relu elu celu selu erf sqrt sign floor ceil round trunc mish softshrink "
    "hardshrink sin asin atan sinh square expm1 log1p nan_to_num relu6 log_sigmoid_0 positive clone to copy".split()
)


def pointwise(step: Step) -> bool:
    """Whether an operation has one result and works entry by entry, its operands broadcast."""
    if len(step.results) != 1 or step.operation is None:
        return False
    functional = getattr(torch.ops.aten, step.name.rstrip("_"), None)  # the tag is not set on those in place
    if step.name.endswith("_") and functional is not None:
        overloads = [getattr(functional, name) for name in functional.overloads()]
    else:
        overloads = [step.operation]
    return any(torch.Tag.pointwise in o.tags for o in overloads) or step.name.rstrip("_") in _ENTRYWISE


def pointwise_flags(live: Liveness, step: Step) -> Tensor:
    """Return the flags of an entry-by-entry operation's result."""
    name = step.name.rstrip("_")
    rank = len(step.results[0].shape)
    flags = [_ranked(live.of(value), rank) for value in step.inputs]
    scalars = [argument for argument in step.args if isinstance(argument, (int, float)) and not isinstance(argument, bool)]
    first = flags[0]
    if name == "copy":
        return spread(flags[1] + 0 * first)
    if name == "mul":
        return spread(first * flags[1]) if len(flags) == 2 else first.clone()
    if name in ("div", "_prelu_kernel"):
        return spread(first * (flags[1] + 1)) if len(flags) == 2 else first.clone()
    if name in ("add", "sub", "maximum", "minimum", "fmod", "hypot"):
        shifted = 1.0 if len(flags) == 1 and any(scalar != 0 for scalar in scalars[:1]) else 0.0
        return spread(sum(flags[1:], first) + shifted)
    if name == "where":
        condition, *branches = flags
        return spread(sum(branches, torch.zeros(())) * (condition + 1))
    bounded = name in ("clamp", "hardtanh", "clamp_min", "clamp_max", "threshold") and len(flags) == 1
    if name in ZERO_STAYS or (name == "pow" and len(flags) == 1 and scalars and scalars[0] > 0) or (
        bounded and _holds_zero(name, step)
    ):
        return sum(flags[1:], first.clone())
    return spread(sum(flags[1:], first) + 1)


def _holds_zero(name: str, step: Step) -> bool:
    bounds = [*step.args[1:], *step.kwargs.values()]
    if name == "clamp_min":
        return bool(bounds[0] <= 0)
    if name == "clamp_max":
        return bool(bounds[0] >= 0)
    if name == "threshold":
        return False
    low, high = ([*bounds, None, None])[:2] if bounds else (-1, 1)
    return (low is None or low <= 0) and (high is None or high >= 0)


def _ranked(form: Tensor, rank: int) -> Tensor:
    return form.reshape([1] * (rank - form.dim()) + list(form.shape))


def _dims(step: Step, value: Value, position: int = 1, name: str = "dim") -> list[int]:
    given = step.args[position] if len(step.args) > position else step.kwargs.get(name)
    rank = len(value.shape)
    if given is None or given == []:
        return list(range(rank))
    return sorted({d % max(1, rank) for d in ([given] if isinstance(given, int) else given)})


def _drop(form: Tensor, dims: list[int], result: Value) -> Tensor:
    """Return a form without the reduced dimensions, unless the result keeps them."""
    if len(result.shape) == form.dim():
        return form
    return form.reshape([size for d, size in enumerate(form.shape) if d not in dims])


def _reduction(*, counts: bool) -> Rule:
    """A sum over dimensions; with `counts` one that depends on how many entries there are, or on zeros (mean, max)."""

    def couple(coupling: Coupling, step: Step) -> None:
        value, *_ = step.inputs
        dims = _dims(step, value, 2 if step.name == "linalg_vector_norm" else 1)
        if counts:
            left = coupling.depend(value, dims)
        else:
            ends = [axis for axis in coupling.of(value) if set(varying(axis)) <= set(dims)]
            coupling_axes = [axis for axis in coupling.of(value) if not any(axis is end for end in ends)]
            left = _tied_along(coupling, coupling_axes, dims)
        for result in step.results:
            coupling.set(result, [_drop(axis, dims, result) for axis in left])

    def flow(live: Liveness, step: Step) -> None:
        value, *_ = step.inputs
        dims = _dims(step, value, 2 if step.name == "linalg_vector_norm" else 1)
        flags = spread(live.of(value).sum(dims, keepdim=True) if dims else live.of(value))
        for result in step.results:
            live.set(result, _drop(flags, dims, result).clone())

    return Rule(couple, flow)


def _tied_along(coupling: Coupling, found: list[Tensor], dims: list[int]) -> list[Tensor]:
    left = []
    for axis in found:
        for d in set(varying(axis)) & set(dims):
            first = axis.narrow(d, 0, 1)
            coupling.numbers.tie(axis, first)
            axis = first
        left.append(axis)
    return left


def _couple_softmax(coupling: Coupling, step: Step) -> None:
    value = step.inputs[0]
    coupling.set(step.results[0], coupling.depend(value, _dims(step, value)))


def _flow_softmax(live: Liveness, step: Step) -> None:
    value = step.inputs[0]
    live.set(step.results[0], spread(live.of(value).sum(_dims(step, value), keepdim=True) + 1))


def _batch_norm_operands(step: Step) -> tuple[Value, Value | None, Value | None, list[Value]]:
    value, weight, bias, *rest = step.args
    return value, weight, bias, [v for v in rest if isinstance(v, Value)]


def _couple_batch_norm(coupling: Coupling, step: Step) -> None:
    value, weight, bias, statistics = _batch_norm_operands(step)
    tensors = [v for v in (weight, bias, *statistics) if v is not None]
    _couple_affine(coupling, step, coupling.of(value), tensors, 1)
    for v in (weight, bias):
        if v is not None:
            coupling.produced += coupling.of(v)


def _couple_affine(coupling: Coupling, step: Step, found: list[Tensor], tensors: list[Value], dim: int) -> None:
    """Tie vectors to the axis along `dim` of a tensor whose axes are `found`; they stay whole if it has none."""
    result = step.results[0]
    rank = len(result.shape)
    along = [axis for axis in found if dim in varying(axis)]
    for v in tensors:
        for own in coupling.of(v):
            if along and len(v.shape) == 1:
                sizes = [1] * rank
                sizes[dim] = -1
                coupling.numbers.tie(own.reshape(sizes), along[0])
            else:
                coupling.numbers.fix(own)
        if not coupling.of(v) and along and v.shape != (1,):
            coupling.numbers.fix(along[0])
    coupling.set(result, found)


def _flow_batch_norm(live: Liveness, step: Step) -> None:
    value, weight, bias, statistics = _batch_norm_operands(step)
    flags = live.of(value)
    scale = torch.ones(())
    shift = torch.zeros(())
    vectors = [v for v in (weight, bias, *statistics) if v is not None]
    shape = [1, -1] + [1] * (len(value.shape) - 2)
    if all(v.constant is not None for v in vectors):
        scale = torch.ones(()) if weight is None else live.constant(weight)
        mean = live.constant(statistics[0]) if statistics else torch.zeros(())
        shift = (torch.zeros(()) if bias is None else live.constant(bias)) - mean * scale
        scale, shift = ((t != 0).to(torch.float32).reshape(shape if t.dim() else []) for t in (scale, shift))
    else:
        shift = torch.ones(())
    live.set(step.results[0], spread(flags * scale + shift))


def _couple_layer_norm(coupling: Coupling, step: Step) -> None:
    value, normalized, *rest = step.args
    rank, count = len(value.shape), len(normalized)
    left = coupling.depend(value, range(rank - count, rank))
    for v in rest:
        if isinstance(v, Value):
            coupling.fix(v)
    coupling.set(step.results[0], left)


def _flow_layer_norm(live: Liveness, step: Step) -> None:
    value, normalized, weight, bias, *_ = step.args
    dims = list(range(len(value.shape) - len(normalized), len(value.shape)))
    _flow_normalised(live, step, spread(live.of(value).sum(dims, keepdim=True)), weight, bias, len(value.shape))


def _flow_normalised(
    live: Liveness, step: Step, flags: Tensor, weight: Value | None, bias: Value | None, rank: int, dim: int | None = None
) -> None:
    def placed(v: Value) -> Tensor:
        form = live.of(v)
        if dim is None:
            return _ranked(form, rank)
        return form.reshape([1] * dim + [-1] + [1] * (rank - dim - 1))

    if weight is not None:
        flags = flags * placed(weight)
    if bias is not None:
        flags = flags + placed(bias)
    live.set(step.results[0], spread(flags))


def _couple_group_norm(coupling: Coupling, step: Step) -> None:
    value, weight, bias, _, channels, _, groups, *_ = step.args
    left = []
    for axis in coupling.of(value):
        if 1 not in varying(axis):
            left.append(axis)
        elif groups == 1 or varying(axis) != (1,):
            coupling.numbers.fix(axis)
        else:
            grouped = axis.reshape(groups, channels // groups)
            coupling.numbers.tie(grouped, grouped[:, :1])
            left.append(axis)
    vectors = [v for v in (weight, bias) if v is not None]
    _couple_affine(coupling, step, left, vectors, 1)
    for v in vectors:
        coupling.produced += coupling.of(v)


def _flow_group_norm(live: Liveness, step: Step) -> None:
    value, weight, bias, _, channels, _, groups, *_ = step.args
    rank = len(value.shape)
    flags = live.of(value)
    flags = flags.sum([d for d in range(rank) if d != 1], keepdim=True).expand(1, channels, *[1] * (rank - 2))
    whole = flags.reshape(groups, -1).sum(1, keepdim=True).expand(groups, channels // groups).reshape(flags.shape)
    _flow_normalised(live, step, spread(whole), weight, bias, rank, dim=1)


def _spatial(rank_of_space: int | None = None) -> Rule:
    """Pooling, resizing: each channel by itself, over the last dimensions."""

    def space(value: Value, step: Step) -> list[int]:
        rank = len(value.shape)
        digits = [int(c) for c in step.name if c.isdigit() and c in "123"]
        return list(range(rank - (rank_of_space or digits[0]), rank))

    def couple(coupling: Coupling, step: Step) -> None:
        value = step.inputs[0]
        left = coupling.depend(value, space(value, step))
        for other in step.inputs[1:]:
            coupling.fix(other)
        for result in step.results:
            coupling.set(result, left)

    def flow(live: Liveness, step: Step) -> None:
        value = step.inputs[0]
        flags = live.of(value).sum(space(value, step), keepdim=True)
        for other in step.inputs[1:]:
            flags = flags * (live.of(other).sum() + 1)
        for result in step.results:
            live.set(result, spread(flags))

    return Rule(couple, flow)


def _couple_pad(coupling: Coupling, step: Step) -> None:
    value, pads = step.args[0], step.args[1]
    result = step.results[0]
    axes = []
    for axis in coupling.of(value):
        for i in range(len(pads) // 2):
            d = len(value.shape) - 1 - i
            if axis.shape[d] > 1 and pads[2 * i : 2 * i + 2] != [0, 0]:
                # A number that never goes stands where padding is: FIXED.
                around = [[size for size in axis.shape] for _ in range(2)]
                around[0][d], around[1][d] = max(0, pads[2 * i]), max(0, pads[2 * i + 1])
                inner = axis.narrow(d, max(0, -pads[2 * i]), axis.shape[d] + min(0, pads[2 * i]) + min(0, pads[2 * i + 1]))
                before, after = (torch.zeros(sizes, dtype=torch.int64) for sizes in around)
                axis = torch.cat([before, inner, after], d)
        axes.append(axis)
    coupling.set(result, axes)


def _flow_pad(live: Liveness, step: Step) -> None:
    value, pads, *rest = step.args
    flags = live.of(value)
    fill = 1.0 if rest and rest[0] else 0.0
    varied = [0] * len(pads)
    for i in range(len(pads) // 2):
        d = flags.dim() - 1 - i
        if pads[2 * i : 2 * i + 2] == [0, 0]:
            continue
        if flags.shape[d] == 1 and value.shape[d] != 1 and not fill and i < 2:
            continue
        sizes = list(flags.shape)
        sizes[d] = value.shape[d]
        flags = flags.expand(sizes)
        varied[2 * i : 2 * i + 2] = pads[2 * i : 2 * i + 2]
    live.set(step.results[0], torch.nn.functional.pad(flags, varied, value=fill).clone())


def _couple_joined(coupling: Coupling, step: Step) -> None:
    values, dim, placed = _joined_operands(step)
    result = step.results[0]
    along: list[Tensor | None] = []
    across = []
    for axes, shape in placed(coupling.of):
        own = [axis for axis in axes if dim in varying(axis)]
        along.append(own[0] if own else None)
        across.append(([axis for axis in axes if dim not in varying(axis)], [*shape[:dim], 1, *shape[dim + 1 :]]))
    found = []
    if any(axis is not None for axis in along):
        # Entries of an operand without numbers of its own stay.
        zero = torch.zeros([1] * len(result.shape), dtype=torch.int64)
        shapes = [shape for _, shape in placed(coupling.of)]
        found.append(forms.joined([zero if axis is None else axis for axis in along], shapes, dim))
    coupling.set(result, [*found, *coupling.matched(across)])


def _joined_operands(step: Step) -> tuple[list[Value], int, Callable[..., list[tuple[list[Tensor], list[int]]]]]:
    """Return the operands of cat or stack, the dimension, and what lays their forms out as operands of cat."""
    values = [v for v in step.args[0] if v.shape != (0,)]
    rank = len(step.results[0].shape)
    dim = (step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)) % rank

    def placed(forms_of: Callable[[Value], list[Tensor]]) -> list[tuple[list[Tensor], list[int]]]:
        if step.name == "cat":
            return [(forms_of(v), list(v.shape)) for v in values]
        return [([f.unsqueeze(dim) for f in forms_of(v)], [*v.shape[:dim], 1, *v.shape[dim:]]) for v in values]

    return values, dim, placed


def _flow_joined(live: Liveness, step: Step) -> None:
    _, dim, placed = _joined_operands(step)
    operands = placed(lambda value: [live.of(value)])
    live.set(step.results[0], forms.joined([f[0] for f, _ in operands], [shape for _, shape in operands], dim))


def _couple_patches(coupling: Coupling, step: Step) -> None:
    """im2col and col2im: between [B, C, H, W] and [B, C * kernel, L]."""
    value, result = step.inputs[0], step.results[0]
    size = math.prod(step.args[1 if step.name == "im2col" else 2])
    axes = []
    for axis in coupling.of(value):
        if varying(axis) == (0,):
            axes.append(axis.reshape([-1] + [1] * (len(result.shape) - 1)))
        elif varying(axis) != (1,):
            coupling.numbers.fix(axis)
        elif step.name == "im2col":
            axes.append(axis.reshape(-1).repeat_interleave(size).reshape(1, -1, 1))
        else:
            grouped = axis.reshape(-1, size)
            coupling.numbers.tie(grouped, grouped[:, :1])
            axes.append(grouped[:, :1].reshape(1, -1, 1, 1))
    coupling.set(result, axes)


def _flow_patches(live: Liveness, step: Step) -> None:
    value, result = step.inputs[0], step.results[0]
    size = math.prod(step.args[1 if step.name == "im2col" else 2])
    flags = live.of(value).expand(-1, value.shape[1], *[-1] * (len(value.shape) - 2))
    flags = flags.flatten(2).sum(2, keepdim=True)
    if step.name == "im2col":
        live.set(result, spread(flags.repeat_interleave(size, 1)))
    else:
        live.set(result, spread(flags.reshape(flags.shape[0], -1, size).sum(2)[..., None, None]))


def _couple_like(coupling: Coupling, step: Step) -> None:
    value, result = step.inputs[0], step.results[0]
    coupling.set(result, coupling.of(value) if value.shape == result.shape else [])


def _flow_like(live: Liveness, step: Step) -> None:
    value, result = step.inputs[0], step.results[0]
    zeros = "zero" in step.name and "index" not in step.name
    live.set(result, torch.full([1] * len(result.shape), 0.0 if zeros else 1.0))


def _couple_embedding(coupling: Coupling, step: Step) -> None:
    weight, result = step.args[0], step.results[0]
    coupling.fix(step.args[1])
    axes = []
    for axis in coupling.of(weight):
        if varying(axis) == (1,):
            axes.append(axis.reshape([1] * (len(result.shape) - 1) + [-1]))
            coupling.produced.append(axis)
        else:
            coupling.numbers.fix(axis)
    coupling.set(result, axes)


def _flow_embedding(live: Liveness, step: Step) -> None:
    weight, result = step.args[0], step.results[0]
    flags = live.of(weight).expand(weight.shape).sum(0) * (1 + live.of(step.args[1]).sum())
    live.set(result, spread(flags.reshape([1] * (len(result.shape) - 1) + [-1])))


def _couple_scaled(coupling: Coupling, step: Step) -> None:
    for value in step.inputs:
        coupling.depend(value, [len(value.shape) - 1])


def _flow_nothing(live: Liveness, step: Step) -> None:
    pass


_BATCH_NORM = Rule(_couple_batch_norm, _flow_batch_norm)
_SOFTMAX = Rule(_couple_softmax, _flow_softmax)
_LIKE = Rule(_couple_like, _flow_like)
_JOINED = Rule(_couple_joined, _flow_joined)
_PATCHES = Rule(_couple_patches, _flow_patches)
RULES: dict[str, Rule] = {
    **{name: Rule(*rule) for name, rule in PRODUCTS.items()},
    **dict.fromkeys(("sum", "linalg_vector_norm", "norm"), _reduction(counts=False)),
    **dict.fromkeys(("mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "logsumexp"), _reduction(counts=True)),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum"), _SOFTMAX),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        _BATCH_NORM,
    ),
    SCALED_BY_SIZE: Rule(_couple_scaled, _flow_nothing),
    "native_layer_norm": Rule(_couple_layer_norm, _flow_layer_norm),
    "native_group_norm": Rule(_couple_group_norm, _flow_group_norm),
    **dict.fromkeys(("constant_pad_nd",), Rule(_couple_pad, _flow_pad)),
    **dict.fromkeys(("cat", "stack"), _JOINED),
    **dict.fromkeys(("im2col", "col2im"), _PATCHES),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "full_like", "empty_like"), _LIKE
    ),
    "embedding": Rule(_couple_embedding, _flow_embedding),
    **{
        name: _spatial()
        for name in (
            "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
            "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d "
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
            "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
            "_upsample_nearest_exact2d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
            "replication_pad2d replication_pad3d"
        ).split()
    },
    **dict.fromkeys(("grid_sampler_2d",), _spatial(2)),
}
