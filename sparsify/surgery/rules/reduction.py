"""Rules of reductions: sums and means, softmax, pooling and resizing."""

from __future__ import annotations

from torch import Tensor

from ..analysis.coupling import Couple, Coupling
from ..dataflow.constants import AVERAGES, OVER_DIMENSIONS, OVER_SPACE
from ..dataflow.liveness import Flow, Liveness, indicator
from ..recording.broadcast_forms import varying
from ..recording.ops import Op, Value, dims_of

_NORMS = ("linalg_vector_norm", "norm")
_INDICES = ("max", "min", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d")


def _drop(form: Tensor, dims: list[int], result: Value) -> Tensor:
    """Return a form without the reduced dimensions, unless the result has them (keepdim)."""
    if len(result.shape) == form.dim():
        return form
    return form.squeeze(dims)


def _reduction(*, counts: bool, of_zero: float = 0.0) -> tuple[Couple, Flow]:
    """Return the rule of a reduction.

    `counts`: the result depends on the number of entries or on zeros among them (mean, max). `of_zero` is positive if
    the reduction of zeros is not zero.
    """

    def couple(coupling: Coupling, op: Op) -> None:
        """Join the channels along the reduced dimensions, or pin them if the result depends on their number."""
        value, *_ = op.inputs
        dims = dims_of(op, value, 2 if op.name in _NORMS else 1)
        power = op.args[1] if op.name in _NORMS and len(op.args) > 1 else 2
        if counts or (power is not None and power <= 0):
            left = coupling.depend(value, dims)
        else:
            kept = [axis for axis in coupling.of(value) if not set(varying(axis)) <= set(dims)]
            left = [coupling.union_along(axis, dims) for axis in kept]
        for result in op.results:
            coupling.set(result, [_drop(axis, dims, result) for axis in left])

    def flow(live: Liveness, op: Op) -> None:
        """Mark a result live where any reduced entry is."""
        value, *_ = op.inputs
        dims = dims_of(op, value, 2 if op.name in _NORMS else 1)
        flags = indicator((live.of(value).sum(dims, keepdim=True) if dims else live.of(value)) + of_zero)
        _set_all(live, op, [_drop(flags, dims, result) for result in op.results])

    return couple, flow


def _set_all(live: Liveness, op: Op, flags: list[Tensor]) -> None:
    """Set the flags of the results; a second result that holds indices may be nonzero in dead channels too."""
    indices = op.name.removesuffix("_with_indices") in _INDICES
    for i, (result, form) in enumerate(zip(op.results, flags, strict=True)):
        live.set(result, indicator(form + 1) if i and indices else form.clone())


def _couple_along(coupling: Coupling, op: Op) -> None:
    """Couple a softmax or cumulative sum, whose entries depend on how many there are along its dimensions."""
    value = op.inputs[0]
    left = coupling.depend(value, dims_of(op, value))
    for result in op.results:
        coupling.set(result, left)


def _flow_softmax(live: Liveness, op: Op) -> None:
    value = op.inputs[0]
    live.set(op.results[0], indicator(live.of(value).sum(dims_of(op, value), keepdim=True) + 1))


def _spatial(rank_of_space: int | None = None, *, by_channel: bool = False) -> tuple[Couple, Flow]:
    """Return the rule of pooling or resizing, which treats each channel by itself, over the last dimensions.

    Other operands, such as positions to sample at, apply to all channels; with `by_channel` each channel has its own.
    """

    def space(value: Value, op: Op) -> list[int]:
        """Return the dimensions that the operation works along, by `rank_of_space` or by the digit in its name."""
        rank = len(value.shape)
        return list(range(rank - (rank_of_space or next(int(c) for c in op.name if c in "123")), rank))

    def couple(coupling: Coupling, op: Op) -> None:
        """Keep the axes of the first input, except those along space."""
        value = op.inputs[0]
        left = coupling.depend(value, space(value, op))
        for other in op.inputs[1:]:
            if by_channel:
                left = [*left, *coupling.depend(other, space(other, op))]
            else:
                coupling.pin(other)
        for result in op.results:
            coupling.set(result, left)

    def flow(live: Liveness, op: Op) -> None:
        """Let a channel of the result be nonzero where any position of the input's channel is."""
        value = op.inputs[0]
        flags = live.of(value).sum(space(value, op), keepdim=True)
        for other in op.inputs[1:]:
            read = live.of(other)
            flags = flags * ((read.sum(space(other, op), keepdim=True) if by_channel else read.sum()) + 1)
        _set_all(live, op, [indicator(flags) for _ in op.results])

    return couple, flow


REDUCTIONS = {
    **dict.fromkeys(("sum", "linalg_vector_norm", "norm"), _reduction(counts=False)),
    **dict.fromkeys((*OVER_DIMENSIONS, "max", "min", "var", "var_mean", "std", "std_mean"), _reduction(counts=True)),
    **dict.fromkeys(("logsumexp", "all", "any"), _reduction(counts=True, of_zero=1.0)),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod"), (_couple_along, _flow_softmax)),
    **dict.fromkeys((*OVER_SPACE, *AVERAGES), _spatial()),
    **dict.fromkeys(
        ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
        _spatial(),
    ),
    "grid_sampler_2d": _spatial(2),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _spatial(by_channel=True)),
}
