"""One update of the masks: criterion, granularity and scope applied to the weights as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from torch import Tensor

from ..processes.shards import local
from ..surgery.mask_state.masks import MaskedWeight
from .criteria.check_scores import score_tensors
from .criteria.table import Context, Criterion
from .schedules import Update
from .selection.candidates import Candidates
from .selection.scopes import Due
from .settings.prune import Pruning


def round_targets(sparsity: Fraction, rounds: int) -> list[Fraction]:
    """Return the sparsity after each round: the density falls by a constant factor, the last one is exactly `sparsity`.

    Tanaka et al. 2020, algorithm 1, where the density after round k of n is rho^(-k/n).
    """
    density = float(1 - sparsity)
    # Twelve decimals, so that counts do not depend on the last bit of a C library's pow.
    return [1 - Fraction(f"{density ** (k / rounds):.12f}") for k in range(1, rounds)] + [sparsity]


def from_present(update: Update, first: Update, target: Fraction) -> Update:
    """Return `update` as progress from the masks at the start to `target`, as in a union's cycle.

    The progress is that of the schedule since its update `first`.
    """
    assert update.sparsity is not None and first.sparsity is not None
    span = target - first.sparsity
    return replace(update, sparsity=None, progress=(update.sparsity - first.sparsity) / span if span else Fraction(1))


def set_all(masks: Mapping[str, Tensor], values: Mapping[str, Tensor] | None) -> None:
    """Set `masks`, in place, to `values` of the same names, or, with None, to all ones."""
    for name, mask in masks.items():
        if values is None:
            local(mask).fill_(True)
        else:
            local(mask).copy_(local(values[name]))


def union_of(union: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the OR of a union, which may be empty, and `masks`, by name: new tensors."""
    return {name: union[name] | mask if name in union else mask.clone() for name, mask in masks.items()}


def update_masks(
    update: Update,
    pruning: Pruning,
    criterion: Criterion,
    candidates: Candidates,
    weights: Mapping[str, MaskedWeight],
    context: Context,
    union: Mapping[str, Tensor],
) -> float:
    """Write the masks of `update`, in place, and return the sparsity due from now on.

    `union` holds the union of the saved masks by weight name; in its cycle only its members may be kept. Raises
    SparsifyError for scores that are NaN or missing; some masks may then be written already.
    """
    allowed = _allowed(update, pruning, weights, union)
    masks = {name: weight.mask for name, weight in weights.items()}
    if update.sparsity == 0:  # nothing to select: all that may be kept is kept
        set_all(masks, allowed)
        return 0.0
    start = None
    if update.sparsity is None:
        start = {member.name: member.mask for member in candidates.members(union)}
    target = pruning.target if update.sparsity is None else update.sparsity
    scored = {name: weights[name] for name in candidates.scored}
    generator = context.generator.get_state()
    due = Fraction(0)
    amount = pruning.amount
    rounds = pruning.rounds
    sparsities = (
        round_targets(target, rounds) if amount is None else [target * k / rounds for k in range(1, rounds + 1)]
    )
    for sparsity in sparsities:
        context.generator.set_state(generator)
        tensors = score_tensors(criterion, scored, context, allowed)
        due = candidates.select(tensors, masks, allowed, Due(sparsity, update.progress, start, amount))
        allowed = masks  # what a round removes stays removed
    return float(due if amount is not None or (start is not None and update.progress != 1) else target)


def _allowed(
    update: Update, pruning: Pruning, weights: Mapping[str, MaskedWeight], union: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """Return the entries that may be kept, by weight name; None where all may."""
    in_union = update.sparsity is None
    if pruning.regrow is True or (pruning.regrow == "before_union" and not in_union):
        return union if in_union else None
    return {name: weight.mask for name, weight in weights.items()}
