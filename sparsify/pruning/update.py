"""One update of the masks: criterion, granularity and scope applied to the weights as they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ..surgery.masks import MaskedWeight
from .criteria import Context, Criterion
from .granularity import GRANULARITIES
from .schedules import Update
from .scopes import SCOPES, Counts, Due, Member
from .scores import scored_parts
from .settings import Pruning, decimal


def members_of(pruning: Pruning, weights: Mapping[str, MaskedWeight]) -> list[Member]:
    """Return what the scope counts: each weight's mask, one entry per weight or per unit as the granularity has it."""
    view = GRANULARITIES[pruning.granularity.name].mask
    return [Member(name, view(w.mask, w.module), w.module, w.mask.shape) for name, w in weights.items()]


def share_removed(members: Sequence[Member]) -> float:
    """Return the fraction of all entries that is removed."""
    size = sum(member.size for member in members)
    return sum(member.size - int(member.mask.count_nonzero()) for member in members) / max(1, size)


def round_targets(sparsity: Fraction, rounds: int) -> list[Fraction]:
    """Return the sparsity after each round: the density falls by the same factor in each, exactly `sparsity` at last.

    Tanaka et al. 2020, algorithm 1, where the density after round k of n is rho^(-k/n).
    """
    density = float(1 - sparsity)
    # Twelve decimals, so that counts do not hang on the last bit of a C library's power.
    return [1 - Fraction(f"{density ** (k / rounds):.12f}") for k in range(1, rounds)] + [sparsity]


def update_masks(
    update: Update,
    pruning: Pruning,
    criterion: Criterion,
    weights: Mapping[str, MaskedWeight],
    context: Context,
    union: Mapping[str, Tensor],
) -> float:
    """Write the masks that `update` asks for, in place, and return the sparsity that is due from now on.

    `union` holds the union of the saved masks by weight name; in its cycle only its members may be kept. Raises
    SparsifyError for scores that are NaN or missing.
    """
    granularity, scope = GRANULARITIES[pruning.granularity.name], SCOPES[pruning.scope]
    modules = [weight.module for weight in weights.values()]
    alive = _alive(update, pruning, weights, union)
    if update.sparsity == 0:  # nothing to choose: everything that may be kept is
        for name, weight in weights.items():
            weight.mask.copy_(torch.ones_like(weight.mask) if alive is None else alive[name])
        return 0.0
    start = None
    if update.sparsity is None:
        start = {name: granularity.mask(union[name], weight.module) for name, weight in weights.items()}
    target = decimal(pruning.sparsity) if update.sparsity is None else update.sparsity
    members = members_of(pruning, weights)
    counts: Counts = []
    generator = context.generator.get_state()
    for sparsity in round_targets(target, pruning.rounds):
        context.generator.set_state(generator)
        counts = scope.counts(members, Due(sparsity, update.progress, start))
        parts = scored_parts(criterion, weights, context, alive)
        chosen = [granularity.part(part, module) for part, module in zip(parts, modules, strict=True)]
        scope.select(chosen, modules, counts)
        for selected, part, module in zip(chosen, parts, modules, strict=True):
            granularity.apply(selected, part, module)
        alive = {name: weight.mask for name, weight in weights.items()}  # what a round removes stays removed
    if start is None or update.progress == 1:
        return float(target)
    removed = sum(int(torch.as_tensor(count).sum()) for count in counts)
    return removed / max(1, sum(member.size for member in members))


def _alive(
    update: Update, pruning: Pruning, weights: Mapping[str, MaskedWeight], union: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Return the entries that may be kept, by weight name; None where all may."""
    in_union = update.sparsity is None
    if pruning.regrow is True or (pruning.regrow == "before_union" and not in_union):
        return union if in_union else None
    return {name: weight.mask for name, weight in weights.items()}
