"""Groups of channels as candidates: removed by count or by cost, and never the last one of a layer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ...errors import SparsifyError
from ...surgery.mask_state.masks import ROWS
from ..selection.candidates import Masks, count_of
from ..selection.k_lowest import ScoredTensor
from ..selection.scopes import Due, Member, Scope
from .costs import Term, savings, total
from .group_scores import group_scores, keep_groups, kept_groups
from .groups import Groups


@dataclass(frozen=True)
class GroupCandidates:
    """Groups of channels, scored by `aggregate`, divided by the saving of the cost `per` if given.

    With `of` a sparsity is a fraction of that cost, else of the prunable groups. The best group of a coupled layer
    always stays, so that no layer becomes empty.
    """

    groups: Groups
    scope: Scope
    aggregate: str
    per: Sequence[Term] | None = None
    of: Sequence[Term] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.groups.produced)

    @property
    def scored(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.groups.scored)

    @property
    def prices(self) -> Tensor:
        """The amounts of the terms of the cost `per`, float64."""
        return torch.tensor([float(term.amount) for term in self.per or ()], dtype=torch.float64, device="cpu")

    def at_prices(self, prices: Tensor) -> GroupCandidates:
        """Return the candidates with other `prices`. Raises SparsifyError if these are of another model."""
        if len(prices) != len(self.per or ()):
            raise SparsifyError("pruner state: 'prices' fits no operations of this model")
        terms = zip(prices.tolist(), self.per or (), strict=True)
        return replace(self, per=tuple(Term(price, term.axes) for price, term in terms))

    def members(self, masks: Masks) -> list[Member]:
        kept = kept_groups(self.groups, masks)
        return [Member(layer.weights[0], kept[layer.groups], layer.shapes) for layer in self.groups.layers]

    def removed(self, masks: Masks) -> Fraction:
        return self._removed(kept_groups(self.groups, masks))

    def _removed(self, kept: Tensor) -> Fraction:
        if self.of is None:
            return Fraction(int((~kept).sum()), max(1, int(self.groups.prunable.sum())))
        return 1 - total(self.of, kept) / (total(self.of, torch.ones_like(kept)) or Fraction(1))

    def due(self, masks: Masks, due: Due) -> int:
        kept = kept_groups(self.groups, masks)
        if self.of is None:
            return sum(map(count_of, self.scope.counts(self.members(masks), due)))
        # As many as needed: those removed or, if they do not suffice, all.
        return int((~kept if self._removed(kept) >= due.sparsity else self.groups.prunable).sum())

    def select(self, tensors: Sequence[ScoredTensor], masks: Masks, allowed: Masks | None, due: Due) -> Fraction:
        """Write the masks of the groups that stay, in place, and return the fraction that was due."""
        allowed_groups = None if allowed is None else kept_groups(self.groups, allowed)
        scores = group_scores(self.groups, tensors, self.aggregate, allowed_groups)
        if self.per is not None:
            saved = savings(self.per, kept_groups(self.groups, masks))
            scores = torch.where(saved > 0, scores / saved, torch.inf)
        kept, share_due = self._chosen(scores, allowed_groups, due, self.members(masks))
        keep_groups(self.groups, kept, masks, allowed)
        return share_due

    def _chosen(
        self, scores: Tensor, allowed_groups: Tensor | None, due: Due, members: list[Member]
    ) -> tuple[Tensor, Fraction]:
        """Return which groups stay, bool [groups], and the fraction that was due."""
        removable = [self._removable(scores, allowed_groups, layer.groups, layer.spare) for layer in self.groups.layers]
        kept = torch.ones_like(self.groups.prunable)
        if self.of is not None:
            share = self._share_due(due)
            return self._cheapest(scores, allowed_groups, torch.cat(removable), share), share
        counts = self.scope.counts(members, due)
        tensors = [
            ScoredTensor(
                member.name, scores[ids], kept[ids], allowed=None if allowed_groups is None else allowed_groups[ids]
            )
            for member, ids in zip(members, removable, strict=True)
        ]
        self.scope.select(tensors, [ROWS] * len(tensors), counts)
        for scored, ids in zip(tensors, removable, strict=True):
            kept[ids] = scored.mask
        return kept, Fraction(sum(map(count_of, counts)), max(1, int(self.groups.prunable.sum())))

    def _removable(self, scores: Tensor, allowed_groups: Tensor | None, ids: Tensor, spare: bool) -> Tensor:
        """Return the removable groups of a layer: all but the best, unless others stay anyway (`spare`)."""
        if spare:
            return ids
        able = ids if allowed_groups is None or not allowed_groups[ids].any() else ids[allowed_groups[ids]]
        best = able.flip(0)[scores[able].flip(0).argmax()]  # of equal ones the last
        return ids[ids != best]

    def _share_due(self, due: Due) -> Fraction:
        """Return the fraction of the cost to be removed at this point, from what was removed at the start."""
        if due.start is None:
            return due.sparsity
        kept = torch.ones_like(self.groups.prunable)
        for layer in self.groups.layers:
            kept[layer.groups] = due.start[layer.weights[0]]
        return due.share(self._removed(kept))

    def _cheapest(self, scores: Tensor, allowed_groups: Tensor | None, removable: Tensor, share: Fraction) -> Tensor:
        """Return which groups stay, bool [groups], if the fewest lowest-scored groups are removed that save `share`."""
        removable = removable.sort().values
        order = removable[scores[removable].sort(stable=True).indices]
        least = 0
        if allowed_groups is not None:  # groups that may not stay are removed first, in any case
            order = torch.cat([order[~allowed_groups[order]], order[allowed_groups[order]]])
            least = int((~allowed_groups[order]).sum())

        def without(count: int) -> Tensor:
            kept = torch.ones_like(self.groups.prunable)
            kept[order[:count]] = False
            return kept

        # The cost falls with the number removed.
        fewest = bisect_left(range(len(order)), True, least, key=lambda count: self._removed(without(count)) >= share)
        return without(fewest)
