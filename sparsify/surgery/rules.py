"""One row per operation: how it couples channels, and which entries can matter through it.

`couple` enters in a Coupling which channels go together, `flow` enters in a Liveness the flags of the results.
Operations that only move entries are in `axes.MOVES`; what works entry by entry has a common rule in `entrywise`; an
operation with no rule is a barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .along import ALONG
from .convolutions import CONVOLUTIONS
from .coupling import Coupling, varying
from .entrywise import pointwise, pointwise_flags
from .fills import FILLS
from .layout import LAYOUT
from .liveness import Liveness
from .norms import NORMS
from .products import PRODUCTS
from .recurrent import RECURRENT
from .reductions import REDUCTIONS
from .steps import SCALED_BY_SIZE, Step

__all__ = ["RULES", "Rule", "pointwise", "pointwise_flags"]


class Rule(NamedTuple):
    """What is known of one operation."""

    couple: Callable[[Coupling, Step], None]
    flow: Callable[[Liveness, Step], None]


def _couple_scaled(coupling: Coupling, step: Step) -> None:
    for value in step.inputs:
        last = len(value.shape) - 1
        if coupling.heads == "whole":
            coupling.depend(value, [last])
        elif any(last in varying(axis) for axis in coupling.of(value)):
            coupling.fix(value, [last])
            where = step.module or "the model"
            why = f"{where}: attention divides by the root of the size of its heads, so that it stays"
            coupling.barriers[why] = None
            coupling.barred.add(step)


def _flow_scaled(live: Liveness, step: Step) -> None:
    pass


RULES = {
    SCALED_BY_SIZE: Rule(_couple_scaled, _flow_scaled),
    **{
        name: Rule(*rule)
        for table in (CONVOLUTIONS, PRODUCTS, NORMS, REDUCTIONS, LAYOUT, ALONG, FILLS, RECURRENT)
        for name, rule in table.items()
    },
}
