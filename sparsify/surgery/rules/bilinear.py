"""The rule of bilinear layers: a broadcast product of three tensors, summed over some dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..analysis.coupling import Coupling
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import varying

if TYPE_CHECKING:
    from ..recording.ops import Op


def _with_lacking(form: Tensor, lacking: list[int]) -> Tensor:
    """Return the form of a factor with dimensions of size 1 inserted where it lacks them."""
    for d in sorted(lacking):
        form = form.unsqueeze(d)
    return form


def _couple_trilinear(coupling: Coupling, op: Op) -> None:
    """Couple the factors along common dimensions; summed entries are removed from all factors together."""
    summed = op.args[6]
    met = []
    for value, lacking in zip(op.args[:3], op.args[3:6], strict=True):
        axes = [_with_lacking(axis, lacking) for axis in coupling.of(value)]
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
            left.append(coupling.union_along(axis, summed).squeeze(summed))
    coupling.set(op.results[0], left)
    coupling.count(op, [*coupling.axes[op.results[0]], *together.values()])


def _flow_trilinear(live: Liveness, op: Op) -> None:
    first, second, third = (
        _with_lacking(live.of(value), lacking) for value, lacking in zip(op.args[:3], op.args[3:6], strict=True)
    )
    product = first * second * third
    live.set(op.results[0], indicator(product.sum(op.args[6])))


BILINEAR = {"_trilinear": (_couple_trilinear, _flow_trilinear)}
