"""Candidates of a pruning: the entries of weights, the rows of weights, or groups of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor, nn

from ...errors import SparsifyError
from ...processes.ranks import total
from ...processes.shards import count, group_of_shards, is_sharded, like, local
from ...surgery.mask_state.masks import ROWS, Layout, MaskedWeight, layout, masked_parameters, matrix_shapes
from .granularity import Granularity
from .k_lowest import ScoredTensor
from .scopes import Counts, Due, Member, Scope

Masks = Mapping[str, Tensor]


class Candidates(Protocol):
    """The candidates of one pruning; masks are by name of the parameters in `names`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters whose masks are written, in order."""
        ...

    @property
    def scored(self) -> tuple[str, ...]:
        """The parameters that a criterion scores, in order."""
        ...

    def members(self, masks: Masks) -> list[Member]:
        """Return the candidates by weight or layer, and which of them `masks` keep."""
        ...

    def removed(self, masks: Masks) -> Fraction:
        """Return the sparsity of `masks`, as a fraction of what the setting `of` counts."""
        ...

    def due(self, masks: Masks, due: Due) -> int:
        """Return how many candidates are to be removed."""
        ...

    def select(self, tensors: Sequence[ScoredTensor], masks: Masks, allowed: Masks | None, due: Due) -> Fraction:
        """Write `masks`, in place, which keep only entries in `allowed` (None: all); return the fraction due."""
        ...


class EntryCandidates:
    """Entries, blocks or rows of single weights; `notes` says which stay and why.

    The sparsity is a fraction of `whole` entries, by default of all candidates.
    """

    def __init__(
        self,
        granularity: Granularity,
        scope: Scope,
        weights: Mapping[str, MaskedWeight],
        notes: Sequence[str] = (),
        whole: int | None = None,
    ) -> None:
        self.whole = whole
        self.names = self.scored = tuple(weights)
        self.granularity, self.scope, self.notes = granularity, scope, tuple(notes)
        self.layouts = {name: layout(weight) for name, weight in weights.items()}
        # The layouts that a scope uses: a view of another shape is a matrix.
        self.seen = [own if granularity.keeps_shape else ROWS for own in self.layouts.values()]

    def members(self, masks: Masks) -> list[Member]:
        return [
            Member(name, self._view(masks[name], own), matrix_shapes(masks[name].shape, own), seen)
            for (name, own), seen in zip(self.layouts.items(), self.seen, strict=True)
        ]

    def _view(self, mask: Tensor, own: Layout) -> Tensor:
        """Return a mask with one entry per candidate of the granularity, sharded if the mask is."""
        if not is_sharded(mask):
            return self.granularity.mask(mask, own)
        shape = self.granularity.mask(torch.empty(mask.shape, dtype=torch.bool, device="meta"), own).shape
        return like(mask, self.granularity.mask(local(mask), own), shape)

    def removed(self, masks: Masks) -> Fraction:
        members = self.members(masks)
        gone = sum(member.size - count(member.mask) for member in members)
        return Fraction(gone, self._size(members))

    def _size(self, members: Sequence[Member]) -> int:
        return self.whole or max(1, sum(member.size for member in members))

    def _counts(self, members: Sequence[Member], due: Due) -> Counts:
        if self.whole is not None:
            due = replace(due, sparsity=due.sparsity * self.whole / max(1, sum(member.size for member in members)))
        return self.scope.counts(members, due)

    def due(self, masks: Masks, due: Due) -> int:
        members = self.members(masks)
        return _sum(self._counts(members, due), members)

    def select(self, tensors: Sequence[ScoredTensor], masks: Masks, allowed: Masks | None, due: Due) -> Fraction:
        members, layouts = self.members(masks), list(self.layouts.values())
        counts = self._counts(members, due)
        chosen = [self.granularity.view(scored, own) for scored, own in zip(tensors, layouts, strict=True)]
        self.scope.select(chosen, self.seen, counts)
        for selected, scored, own in zip(chosen, tensors, layouts, strict=True):
            self.granularity.apply(selected, scored, own)
        return Fraction(_sum(counts, members), self._size(members))


def check_amount(model: nn.Module, candidates: Candidates, amount: int | None, scope: Scope) -> None:
    """Raise SparsifyError, naming the first, if a group of the scope has fewer candidates than `amount`."""
    if amount is None:
        return
    parameters = masked_parameters(model)
    masks = {name: parameters[name].mask for name in candidates.names}
    for name, size in scope.sizes(candidates.members(masks)):
        if amount > size:
            raise SparsifyError(f"pruning.amount: {amount} are to go from {name}, which has {size}")


def count_of(count: int | Tensor) -> int:
    """Return a count, or the sum of a tensor of counts."""
    return int(count.sum()) if isinstance(count, Tensor) else count


def _sum(counts: Counts, members: Sequence[Member]) -> int:
    """Return the sum of counts over all processes; tensors of counts are of this process's rows."""
    group = group_of_shards(members[0].mask) if members else None
    here = sum(count_of(one) for one in counts if isinstance(one, Tensor))
    return sum(one for one in counts if not isinstance(one, Tensor)) + total(here, group)
