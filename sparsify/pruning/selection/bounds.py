"""Global selection with a lowest and a highest sparsity for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import ceil

import torch

from ...surgery.mask_state.masks import Layout
from .k_lowest import ScoredTensor, remove_lowest
from .scopes import Counts, Scope


@dataclass(frozen=True)
class Bounds:
    """The lowest and highest sparsity of every layer; on a ramp to `target` the lowest grows in proportion."""

    least: Fraction
    most: Fraction
    target: Fraction

    def counts(self, sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Return how many of each size are removed at least and at most, when `count` are removed in all."""
        whole = self.target * sum(sizes)
        share = Fraction(1) if count >= int(whole) else Fraction(count) / whole
        lowest = [ceil(self.least * share * size) for size in sizes]
        if sum(lowest) > count:
            lowest = [int(self.least * share * size) for size in sizes]
        return [(low, max(low, int(self.most * size))) for low, size in zip(lowest, sizes, strict=True)]


def bounded(scope: Scope, bounds: Bounds) -> Scope:
    """Return a scope with one count for all weights, which is selected within `bounds`."""
    return replace(scope, select=partial(_select_within, bounds=bounds))


def _select_within(
    tensors: Sequence[ScoredTensor], layouts: Sequence[Layout], counts: Counts, *, bounds: Bounds
) -> None:
    """Write masks that remove each weight's minimum, then the lowest scores of all together up to the maxima.

    If the maxima allow less than the count, less is removed.
    """
    count, opened, forced = int(counts[0]), [], []
    outcomes = tensors
    tensors = [replace(one, mask=torch.empty_like(one.mask)) for one in outcomes]  # what is allowed may be the mask
    for scored, (low, high) in zip(tensors, bounds.counts([one.mask.numel() for one in tensors], count), strict=True):
        remove_lowest([scored], high)
        may_go = ~scored.mask
        remove_lowest([scored], low)
        forced.append(~scored.mask)
        opened.append(may_go & scored.mask)
    between = [
        ScoredTensor(
            one.name,
            one.scores[open_],
            torch.ones_like(one.mask[open_]),
            one.absolute,
            None if one.allowed is None else one.allowed[open_],
        )
        for one, open_ in zip(tensors, opened, strict=True)
    ]
    left = count - sum(int(gone.count_nonzero()) for gone in forced)
    remove_lowest(between, left)
    for scored, gone, open_, chosen in zip(outcomes, forced, opened, between, strict=True):
        scored.mask.copy_(~gone)
        scored.mask[open_] = chosen.mask
