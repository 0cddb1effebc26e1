"""Rules of operations that fill a tensor of explicit sizes with one number."""

from __future__ import annotations

from ..analysis.axis_moves import new_axes
from ..analysis.coupling import Coupling
from ..dataflow.liveness import Liveness
from ..recording.ops import FILLS as NAMES
from ..recording.ops import Op


def _couple_fill(coupling: Coupling, op: Op) -> None:
    result = op.results[0]
    coupling.offer(result, new_axes(coupling, result.shape, [d for d, size in enumerate(result.shape) if size > 1]))


def flow_nothing(live: Liveness, op: Op) -> None:
    """Do nothing: the results, if any, are constants, whose flags follow from their values."""


FILLS = dict.fromkeys(NAMES, (_couple_fill, flow_nothing))
