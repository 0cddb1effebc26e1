"""The rules, one row per operation: how it couples channels, and its transfer function for liveness.

Movements have no row: they are in `broadcast_forms.MOVEMENTS`. Element-wise operations share one rule. An operation
without a rule is a barrier: its channels stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ...errors import SparsifyError
from ..analysis.coupling import Couple, Coupling
from ..dataflow.liveness import Flow, Liveness, indicator
from ..recording.broadcast_forms import expand_rank, varying
from ..recording.ops import SCALED_BY_SIZE, Op, pointwise
from .bilinear import BILINEAR
from .concat_pad import LAYOUT, couple_first
from .convolution import CONVOLUTIONS
from .experts import EXPERTS
from .fills import FILLS, flow_nothing
from .matmul import PRODUCTS
from .normalisation import NORMS
from .pointwise import pointwise_flags
from .recurrent import RECURRENT
from .reduction import REDUCTIONS
from .sort_gather import ALONG

__all__ = ["RULES", "Rule", "Rules", "checked_rules", "entrywise", "indicator", "spread"]

spread = indicator  # its first name, which users' rules may import


class Rule(NamedTuple):
    """The rule of one operation.

    `couple(coupling, op)` joins the channel numbers that have to be removed together: it reads `coupling.of(value)` for
    the Values in `op.inputs` and sets the axes of each of `op.results` with `coupling.set`. `flow(live, op)` is the
    transfer function of the liveness analysis: it sets the flags of each result with `live.set`. It computes them from
    `live.of(value)` by sums and products: a flag is positive where an entry may be nonzero, and has a positive gradient
    with respect to every flag that the entry depends on. `indicator` clips flags to 0 or 1.
    """

    couple: Couple
    flow: Flow


def entrywise(*, keeps_zero: bool) -> Rule:
    """Return the rule of an element-wise operation on broadcast tensors.

    `keeps_zero`: its result is zero where all operands are zero.
    """

    def couple(coupling: Coupling, op: Op) -> None:
        coupling.combine(op.results[0], op.inputs)
        for value in op.inputs:
            coupling.offered.pop(value, None)  # `combine` has offered these axes for the result

    def flow(live: Liveness, op: Op) -> None:
        rank = len(op.results[0].shape)
        flags = [expand_rank(live.of(value), rank) for value in op.inputs]
        live.set(op.results[0], indicator(sum(flags, torch.zeros(())) + (0.0 if keeps_zero else 1.0)))

    return Rule(couple, flow)


def checked_rules(where: str, rules: Mapping[str, Rule] | None) -> Rules:
    """Return the rules of all operations; a user's `rules` (operation name -> Rule) override the table's.

    Raises SparsifyError, which begins with `where`, for a value that is not a Rule of two functions.
    """
    found = {}
    for name, rule in (rules or {}).items():
        if not isinstance(rule, Rule) or not all(map(callable, rule)):
            raise SparsifyError(
                f"{where}: rules['{name}'] is not a Rule of two functions, but of type {type(rule).__name__}"
            )
        found[name.removeprefix("aten::")] = rule
    return Rules(found)


def _couple_scaled(coupling: Coupling, op: Op) -> None:
    for value in op.inputs:
        last = len(value.shape) - 1
        if coupling.heads == "whole":
            coupling.depend(value, [last])
        elif any(last in varying(axis) for axis in coupling.of(value)):
            coupling.pin(value, [last])
            where = op.module or "the model"
            why = f"{where}: attention divides by the root of the size of its heads, so that it stays"
            coupling.barriers[why] = None
            coupling.barred.add(op)


def _flow_first(live: Liveness, op: Op) -> None:
    live.set(op.results[0], live.of(op.inputs[0]).clone())


RULES = {
    SCALED_BY_SIZE: Rule(_couple_scaled, flow_nothing),
    "bernoulli_": entrywise(keeps_zero=False),  # F.dropout in a pass in train mode
    "log_sigmoid_forward": entrywise(keeps_zero=False),
    "complex": entrywise(keeps_zero=True),
    **dict.fromkeys(("rrelu_with_noise", "rrelu_with_noise_"), Rule(couple_first, _flow_first)),
    **{
        name: Rule(*rule)
        for table in (CONVOLUTIONS, PRODUCTS, BILINEAR, EXPERTS, NORMS, REDUCTIONS, LAYOUT, ALONG, FILLS, RECURRENT)
        for name, rule in table.items()
    },
}


@dataclass(frozen=True)
class Rules:
    """The rules of all operations: the user's `own`, by name, override the table's."""

    own: Mapping[str, Rule] = field(default_factory=dict)

    def couple(self, op: Op) -> Couple | None:
        """Return the function that couples an operation, None for a movement and if it has no rule of its own."""
        rule = self.own.get(op.name) or (None if op.is_movement else RULES.get(op.name))
        return None if rule is None else rule.couple

    def flow(self, op: Op) -> Flow | None:
        """Return the transfer function of an operation, None for a movement or a barrier."""
        if op.name in self.own:
            return self.own[op.name].flow
        if op.is_movement and op.constant_args is not None:
            return None
        if op.name in RULES:
            return RULES[op.name].flow
        return _flow_pointwise if pointwise(op) else None


def _flow_pointwise(live: Liveness, op: Op) -> None:
    live.set(op.results[0], pointwise_flags(live, op))
