"""Scopes: how many entries are removed from each group of weights, and their selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ...processes.shards import count, local
from ...surgery.mask_state.masks import ROWS, Layout
from .granularity import rows, set_rows
from .k_lowest import ScoredTensor, kept_in_rows, remove_lowest, remove_lowest_in_rows

# One removal count per group: a number, or for groups that are a weight's rows a tensor with one entry per row.
Counts = list[int | Tensor]


@dataclass(frozen=True)
class Member:
    """A weight, or a coupled layer, in a scope: `mask` has one entry for each candidate that can be removed.

    `shapes` are those of the weights' matrices, [outputs, inputs, kernel sizes]; `layout` is that of a single weight.
    """

    name: str
    mask: Tensor
    shapes: tuple[torch.Size, ...]
    layout: Layout | None = None

    @property
    def size(self) -> int:
        """How many entries can be removed."""
        return self.mask.numel()

    @property
    def density(self) -> Fraction:
        """The Erdos-Renyi-Kernel density of its weights, up to a factor: sum of dimensions / size."""
        size = sum(shape.numel() for shape in self.shapes)
        return Fraction(sum(map(sum, self.shapes)), size) if size else Fraction(0)


@dataclass(frozen=True)
class Due:
    """How much is to be removed: `sparsity` or, with `start`, an interpolation towards it.

    `start` holds masks by weight name, of the same form as the members' masks; each group is then interpolated linearly
    from its sparsity there to `sparsity`, at `progress` in [0, 1]. With an `amount` the sparsity is a fraction of that
    number, which is removed from each group.
    """

    sparsity: Fraction
    progress: Fraction = Fraction(1)
    start: dict[str, Tensor] | None = None
    amount: int | None = None

    def count(self, size: int, removed: int = 0, sparsity: Fraction | None = None) -> int:
        """Return how many of a group's `size` entries are removed, rounded down; `removed` were at the start."""
        target = (self.sparsity if sparsity is None else sparsity) * (size if self.amount is None else self.amount)
        if self.start is None:
            return int(target)
        return max(removed, int(removed + (target - removed) * self.progress))

    def share(self, removed: Fraction) -> Fraction:
        """Return the fraction of a cost to be removed, of which `removed` was at the start."""
        return max(removed, removed + (self.sparsity - removed) * self.progress)

    def removed(self, member: Member) -> int:
        """Return how many entries of a weight were removed at the start."""
        if self.start is None:
            return 0
        mask = self.start[member.name]
        return mask.numel() - count(mask)


def global_counts(members: Sequence[Member], due: Due) -> Counts:
    """Return the one count of all weights together."""
    return [due.count(sum(member.size for member in members), sum(due.removed(member) for member in members))]


def layer_counts(members: Sequence[Member], due: Due) -> Counts:
    """Return one count per weight, all at the same sparsity."""
    return [due.count(member.size, due.removed(member)) for member in members]


def filter_counts(members: Sequence[Member], due: Due) -> Counts:
    """Return for each weight a tensor with one count per output unit, all at the same sparsity.

    For a sharded weight, the counts of this process's rows.
    """
    counts: Counts = []
    for member in members:
        assert member.layout is not None, "a filter belongs to one weight"
        units, width = rows(local(member.mask), member.layout).shape
        if due.start is None:
            counts.append(torch.full((units,), due.count(width)))
            continue
        removed = width - kept_in_rows(rows(local(due.start[member.name]), member.layout))
        values, places = torch.unique(removed, return_inverse=True)
        table = [due.count(width, gone) for gone in values.tolist()]
        counts.append(torch.tensor(table, dtype=torch.int64)[places.cpu()])
    return counts


def erk_counts(members: Sequence[Member], due: Due) -> Counts:
    """Return one count per weight, at Erdos-Renyi-Kernel shares of the sparsity; at the target their sum is exact.

    A weight's density is proportional to the sum of its dimensions over their product (Evci et al. 2020, RigL,
    section 3); densities above 1 are capped and the rest is distributed again; rounding is by largest remainder.
    """
    sizes = [member.size for member in members]
    densities = [member.density for member in members]
    keep = sum(sizes) - int(due.sparsity * sum(sizes))
    targets = [size - kept for size, kept in zip(sizes, shares(sizes, densities, keep), strict=True)]
    return [
        due.count(member.size, due.removed(member), Fraction(target, max(1, member.size)))
        for member, target in zip(members, targets, strict=True)
    ]


def shares(sizes: Sequence[int], densities: Sequence[Fraction], keep: int) -> list[int]:
    """Return how many of each size are kept, `keep` in all, in proportion to size * density but at most the size.

    Rounded down, then the largest remainders (the first among equal ones) get one more until the sum is exact.
    """
    dense: set[int] = {index for index, size in enumerate(sizes) if size == 0}
    while True:
        free = [index for index in range(len(sizes)) if index not in dense]
        budget = keep - sum(sizes[index] for index in dense)
        weight = sum((densities[index] * sizes[index] for index in free), Fraction(0))
        scale = budget / weight if weight else Fraction(0)
        full = {index for index in free if scale * densities[index] > 1}
        if not full:
            break
        dense |= full
    exact = [Fraction(size) if i in dense else scale * densities[i] * size for i, size in enumerate(sizes)]
    kept = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda index: kept[index] - exact[index])
    for index in order[: keep - sum(kept)]:
        kept[index] += 1
    return kept


def select_together(tensors: Sequence[ScoredTensor], layouts: Sequence[Layout], counts: Counts) -> None:
    """Write masks that remove the one count from all weights together."""
    remove_lowest(tensors, int(counts[0]))


def select_by_layer(tensors: Sequence[ScoredTensor], layouts: Sequence[Layout], counts: Counts) -> None:
    """Write masks that remove from each weight its count."""
    for scored, number in zip(tensors, counts, strict=True):
        remove_lowest([scored], int(number))


def select_by_filter(tensors: Sequence[ScoredTensor], layouts: Sequence[Layout], counts: Counts) -> None:
    """Write masks that remove from each output unit its count."""
    for scored, layout, numbers in zip(tensors, layouts, counts, strict=True):
        allowed = None if scored.allowed is None else rows(scored.allowed, layout)
        matrix = replace(scored, scores=rows(scored.scores, layout), mask=rows(scored.mask, layout), allowed=allowed)
        remove_lowest_in_rows(matrix, torch.as_tensor(numbers))
        if matrix.mask.data_ptr() != scored.mask.data_ptr():  # the rows were a copy
            set_rows(scored.mask, matrix.mask, layout)


def global_sizes(members: Sequence[Member]) -> list[tuple[str, int]]:
    """Return the one group of all weights: its name and its number of entries."""
    return [("all weights together", sum(member.size for member in members))]


def layer_sizes(members: Sequence[Member]) -> list[tuple[str, int]]:
    """Return the weights and how many entries each has."""
    return [(member.name, member.size) for member in members]


def filter_sizes(members: Sequence[Member]) -> list[tuple[str, int]]:
    """Return the weights and how many entries an output unit of each has."""
    return [(f"each output unit of {m.name}", rows(m.mask, m.layout or ROWS).shape[1]) for m in members]


@dataclass(frozen=True)
class Scope:
    """A scope: `counts` returns how many entries are removed from each group, `select` writes masks with these counts.

    `sizes` returns the name and size of each group.
    """

    counts: Callable[[Sequence[Member], Due], Counts]
    select: Callable[[Sequence[ScoredTensor], Sequence[Layout], Counts], None]
    sizes: Callable[[Sequence[Member]], list[tuple[str, int]]]


SCOPES = {
    "global": Scope(global_counts, select_together, global_sizes),
    "layer": Scope(layer_counts, select_by_layer, layer_sizes),
    "filter": Scope(filter_counts, select_by_filter, filter_sizes),
    "erk": Scope(erk_counts, select_by_layer, layer_sizes),
}
