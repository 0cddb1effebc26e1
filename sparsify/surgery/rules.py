"""One row per operation: how it couples channels, and which entries can matter through it.

`couple` enters in a Coupling which channels go together, `flow` enters in a Liveness the flags of the results.
Operations that only move entries are in `axes.MOVES`; what works entry by entry has a common rule in `entrywise`; an
operation with no rule is a barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .convolutions import CONVOLUTIONS
from .coupling import Coupling
from .entrywise import pointwise, pointwise_flags
from .layout import LAYOUT
from .liveness import Liveness
from .norms import NORMS
from .products import PRODUCTS
from .reductions import REDUCTIONS
from .tape import SCALED_BY_SIZE, Step

__all__ = ["RULES", "Rule", "pointwise", "pointwise_flags"]


class Rule(NamedTuple):
    """What is known of one operation."""

    couple: Callable[[Coupling, Step], None]
    flow: Callable[[Liveness, Step], None]


def _couple_scaled(coupling: Coupling, step: Step) -> None:
    for value in step.inputs:
        coupling.depend(value, [len(value.shape) - 1])


def _flow_scaled(live: Liveness, step: Step) -> None:
    pass


RULES = {
    SCALED_BY_SIZE: Rule(_couple_scaled, _flow_scaled),
    **{
        name: Rule(*rule)
        for table in (CONVOLUTIONS, PRODUCTS, NORMS, REDUCTIONS, LAYOUT)
        for name, rule in table.items()
    },
}
