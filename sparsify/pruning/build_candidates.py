"""Building the candidates of a pruning from its settings and a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import nn

from ..errors import SparsifyError, listed
from ..processes.ranks import gather, group_of
from ..surgery.channels.analyse import Channels, analyse
from ..surgery.conversion.fold import fold
from ..surgery.dataflow.liveness import own_surroundings
from ..surgery.mask_state.masks import MaskedWeight, layout, masked_weights
from ..surgery.rules.table import Rule
from .selection.bounds import Bounds, bounded
from .selection.byte_candidates import ByteCandidates
from .selection.candidates import Candidates, EntryCandidates
from .selection.granularity import GRANULARITIES, along_inputs
from .selection.scopes import SCOPES, Scope
from .settings.exact import exact
from .settings.prune import Pruning
from .units.costs import COSTS, Term, at_prices, forward_milliseconds
from .units.group_candidates import GroupCandidates
from .units.groups import learn_groups


def build_candidates(
    model: nn.Module,
    pruning: Pruning,
    names: Sequence[str],
    example_input: Any,
    channels: Channels | None,
    rules: Mapping[str, Rule] | None,
    examples: Sequence[Any],
) -> Candidates:
    """Return the candidates for pruning the weights `names` of `model`: entries, rows, or groups of channels.

    With `channels` or an `example_input`, units are groups of channels, and every parameter that produces them gets a
    mask. Raises SparsifyError if nothing can be pruned, and for settings that need groups without either.
    """
    scope, settings = _scope(pruning), pruning.granularity
    if settings.name == "unit" and (channels is not None or example_input is not None):
        if channels is None:
            heads = settings.heads or "whole"
            channels = analyse(model, example_input, heads=heads, rules=rules, examples=examples)
        per = _per(model, pruning, example_input, channels)
        of = None if pruning.of in (None, "units") else _budget(model, str(pruning.of), channels)
        with own_surroundings():
            groups = learn_groups(model, channels, names)
        return GroupCandidates(groups, scope, settings.aggregate or "mean", per, of)
    needing: dict[str, str | None] = {
        "criterion.per": pruning.criterion.per,
        "of": None if settings.name == "weight" else pruning.of,
    }
    needing |= {"granularity.aggregate": settings.aggregate, "granularity.heads": settings.heads}
    for key, value in needing.items():
        if value is not None and value != "units":
            raise SparsifyError(
                f"pruning.{key}: '{value}' needs to know which units belong together: give Pruner an example_input"
            )
    masked = masked_weights(model)
    weights = {name: masked[name] for name in names}
    granularity = GRANULARITIES[settings.name](settings)
    if pruning.of == "bytes":
        stored = ByteCandidates(granularity, scope, weights, model)
        stored.check(pruning.target)
        return stored
    if settings.m is None:
        return EntryCandidates(granularity, scope, weights, whole=_whole(model, pruning, weights))
    # Each group of m is a row of the view, and all lose the same number.
    return EntryCandidates(granularity, SCOPES["filter"], weights, _left_dense(weights, settings.m))


def _scope(pruning: Pruning) -> Scope:
    scope = SCOPES[pruning.scope]
    if pruning.least is None and pruning.most is None:
        return scope
    most = Fraction(1) if pruning.most is None else exact(pruning.most)
    return bounded(scope, Bounds(exact(pruning.least or 0), most, pruning.target))


def _whole(model: nn.Module, pruning: Pruning, weights: Mapping[str, MaskedWeight]) -> int | None:
    """Return how many entries the sparsity is a fraction of, None for those of the weights."""
    if pruning.of != "parameters":
        return None
    whole = sum(parameter.numel() for parameter in model.parameters())
    size = sum(weight.mask.numel() for weight in weights.values())
    if pruning.target * whole > size:
        raise SparsifyError(
            f"pruning.sparsity: {float(pruning.target):g} of the model's {whole:,} parameters are "
            f"{int(pruning.target * whole):,}, more than the {size:,} weights that may be pruned; at most "
            f"{int(Fraction(1000 * size, whole)) / 1000:g}"
        )
    return whole


def _left_dense(weights: Mapping[str, MaskedWeight], m: int) -> list[str]:
    """Return a line for the weights with fewer than `m` inputs, and one for each with inputs left over at the end."""
    inputs = {name: along_inputs(weight.mask, layout(weight)).shape[2] for name, weight in weights.items()}
    short = [name for name, count in inputs.items() if count < m]
    if len(short) == len(inputs):
        raise SparsifyError(f"pruning.granularity: none of the {len(inputs)} weights has {m} inputs to a unit, or more")
    notes = [f"left dense, with fewer than {m} inputs to a unit: {', '.join(short)}"] if short else []
    rest = {name: count % m for name, count in inputs.items() if count > m and count % m}
    return notes + [f"{name}: the last {rest[name]} of {inputs[name]} inputs stay dense" for name in rest]


def _budget(model: nn.Module, of: str, channels: Channels) -> Sequence[Term]:
    """Return the terms of the cost that a sparsity is a fraction of; SparsifyError if part of it cannot be counted."""
    if of == "flops" and channels.uncounted:
        raise SparsifyError(
            f"pruning.of: 'flops': multiply-adds of {listed(channels.uncounted, 1)} cannot be counted, nor a share of "
            "the total; take of: parameters, or of: units"
        )
    return COSTS[of](model, channels)


def _per(model: nn.Module, pruning: Pruning, example_input: Any, channels: Channels) -> Sequence[Term] | None:
    if pruning.criterion.per is None:
        return None
    if pruning.criterion.per != "milliseconds":
        return COSTS[pruning.criterion.per](model, channels)
    if example_input is None:
        raise SparsifyError("pruning.criterion.per: milliseconds are measured: give Pruner an example_input")
    names = [operation.name for operation in channels.operations]
    measured = forward_milliseconds(fold(model), names, example_input)
    return at_prices(channels, gather(measured, group_of(model))[0])
