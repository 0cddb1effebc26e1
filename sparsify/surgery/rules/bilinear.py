"""The rule of bilinear layers: a broadcast product of three tensors, summed over some dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..analysis.coupling import Coupling, varying
from ..analysis.mac_counts import multiply_adds
from ..dataflow.liveness import Liveness, indicator

if TYPE_CHECKING:
    from ..recording.ops import Op


def _spread(form: Tensor, lacking: list[int]) -> Tensor:
    """Return the form of a factor with dimensions of size 1 inserted where it lacks them."""
    for d in sorted(lacking):
        form = form.unsqueeze(d)
    return form


def _without(form: Tensor, dims: list[int]) -> Tensor:
    return form.reshape([size for d, size in enumerate(form.shape) if d not in dims])


def _couple_trilinear(coupling: Coupling, op: Op) -> None:
    """Couple the factors along common dimensions; summed entries are removed from all factors together."""
    summed = op.args[6]
    met = []
    for value, lacking in zip(op.args[:3], op.args[3:6], strict=True):
        axes = [_spread(axis, lacking) for axis in coupling.of(value)]
        shape = list(value.shape)
        for d in sorted(lacking):
            shape.insert(d, 1)
        met.append((axes, shape))
        if value.constant is not None:
            coupling.produced += [axis for axis in axes if not set(varying(axis)) & set(summed)]
    together: dict[tuple[int, ...], Tensor] = {}
    left = []
    for axis in coupling.matched(met):
        if set(varying(axis)) <= set(summed):
            coupling.numbers.union(axis, together.setdefault(varying(axis), axis))
        else:
            left.append(_without(coupling.union_along(axis, summed), summed))
    coupling.set(op.results[0], left)
    sides = [*coupling.axes[op.results[0]], *together.values()]
    ends = tuple(axis.reshape(-1) for axis in sides if len(varying(axis)) == 1)
    coupling.operations.append((op, multiply_adds(op), ends))


def _flow_trilinear(live: Liveness, op: Op) -> None:
    first, second, third = (
        _spread(live.of(value), lacking) for value, lacking in zip(op.args[:3], op.args[3:6], strict=True)
    )
    product = first * second * third
    live.set(op.results[0], indicator(_without(product.sum(op.args[6], keepdim=True), op.args[6])))


BILINEAR = {"_trilinear": (_couple_trilinear, _flow_trilinear)}
