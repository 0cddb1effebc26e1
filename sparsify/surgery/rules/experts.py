"""Rules of grouped matrix products, which multiply each row by the matrix of its expert.

All experts are slices of one tensor [experts, inputs, outputs], so a hidden unit is removed from all experts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..analysis.coupling import Coupling
from ..analysis.mac_counts import GROUPED
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import along, varying
from .matmul import union_or_pin

if TYPE_CHECKING:
    from ..recording.ops import Op


def _couple_grouped(coupling: Coupling, op: Op) -> None:
    """Couple [rows, inputs] @ [experts, inputs, outputs], grouped by row offsets; experts and rows stay."""
    value, weight, *rest = op.inputs
    if len(value.shape) != 2 or len(weight.shape) != 3:
        coupling.barrier(op, f"operation '{op.name}' is known for rows and a tensor of experts only")
        return
    coupling.claim(value, [1])
    for other in rest:
        coupling.pin(other)
    coupling.pin(value, [0])
    for axis in coupling.of(weight):
        if 0 in varying(axis) or len(varying(axis)) > 1:
            coupling.numbers.pin(axis)
    inputs, outputs = coupling.along(weight, 1), coupling.along(weight, 2)
    union_or_pin(coupling, coupling.along(value, 1), inputs, value.shape[1])
    if outputs is not None and weight.constant is not None:
        coupling.produced += [axis for axis in coupling.of(weight) if varying(axis) == (2,)]
    coupling.set(op.results[0], [] if outputs is None else [along(outputs, 1, 2)])
    coupling.count(op, [axis for axis in (outputs, inputs) if axis is not None])


def _flow_grouped(live: Liveness, op: Op) -> None:
    value, weight, *rest = op.inputs
    if len(value.shape) != 2 or len(weight.shape) != 3:
        live.barrier(op)
        return
    read = 1 + sum(live.of(other).sum() for other in rest)
    entering = live.of(value).sum(0, keepdim=True).expand(1, value.shape[1])
    matrix = live.of(weight).sum(0).expand(weight.shape[1:])
    live.set(op.results[0], indicator(entering @ matrix * read))


EXPERTS = dict.fromkeys(GROUPED, (_couple_grouped, _flow_grouped))
