"""Scores and masks of groups of channels from those of entries, and back to masks of entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...surgery.recording.broadcast_forms import along, row_pieces
from ..selection.k_lowest import ScoredTensor, not_a_number
from .groups import Groups


def kept_groups(groups: Groups, masks: Mapping[str, Tensor]) -> Tensor:
    """Return for each group whether `masks`, by parameter name, keep any entry that scores it, bool [groups]."""
    kept = torch.zeros(groups.count + 1, dtype=torch.int32, device="cpu")
    for one in groups.scored:
        units = one.over_units(masks[one.name])
        # As bytes: torch's amax of bytes is forty times faster than its any of bools.
        any_kept = (units.view(torch.uint8).amax(1) if units.numel() else units.any(1)).to("cpu", torch.int32)
        kept.scatter_reduce_(0, one.labels % (groups.count + 1), any_kept, "amax")
    return kept[:-1].bool() | ~groups.prunable


def keep_groups(
    groups: Groups, kept: Tensor, masks: Mapping[str, Tensor], allowed: Mapping[str, Tensor] | None
) -> None:
    """Write masks, in place, that keep the groups in `kept`, bool [groups], within `allowed`."""
    with_rest = torch.cat([kept, kept.new_ones(1)])
    for one in groups.produced:
        mask = masks[one.name]
        rows = along(with_rest[one.labels].to(mask.device), one.dimension, mask.dim())
        mask.copy_((rows if allowed is None else allowed[one.name] & rows).expand_as(mask))


# aggregate -> (score of one index of a parameter, reduction over the indices of a group). The mean and the maximum are
# those of the units' means, as for rows; the sum and the norm are over all entries.
_AGGREGATES: dict[str, tuple[Callable[[Tensor, bool], Tensor], str]] = {
    "mean": (lambda entries, absolute: _sums(entries, absolute) / max(1, entries.shape[1]), "sum"),
    "sum": (lambda entries, absolute: _sums(entries, absolute), "sum"),
    "max": (lambda entries, absolute: _sums(entries, absolute) / max(1, entries.shape[1]), "amax"),
    "l2": (lambda entries, _: torch.linalg.vector_norm(entries, dim=1, dtype=torch.float64).square(), "sum"),
}


def _sums(entries: Tensor, absolute: bool) -> Tensor:
    if absolute:
        entries = entries.abs()
    return entries.sum(1, dtype=torch.float64)


def group_scores(groups: Groups, tensors: Sequence[ScoredTensor], aggregate: str, allowed: Tensor | None) -> Tensor:
    """Return a score per group, float64 [groups], from the scores of its parameters.

    `aggregate`: the mean or maximum over its units (indices of a parameter) of the mean of their entries, or the sum or
    L2 norm over all entries. Groups without a score have infinity. Raises SparsifyError for a NaN score, naming the
    parameter, unless its group is not `allowed`.
    """
    by_name = {scored.name: scored for scored in tensors}
    of_index, together = _AGGREGATES[aggregate]
    start = -torch.inf if together == "amax" else 0.0
    totals = torch.full((groups.count + 1,), start, dtype=torch.float64, device="cpu")
    counts = torch.zeros_like(totals)
    for one in groups.scored:
        scored = by_name[one.name]
        # Entries that may not be kept count as zero.
        kept = scored.scores if scored.allowed is None else torch.where(scored.allowed, scored.scores, 0)
        pieces = row_pieces(one.over_units(kept))
        values = torch.cat([of_index(piece, scored.absolute) for piece in pieces]).cpu()
        labels = one.labels % (groups.count + 1)
        wrong = values.isnan() & (one.labels >= 0)
        if bool((wrong if allowed is None else wrong & allowed[one.labels]).any()):
            raise not_a_number(one.name)
        totals.scatter_reduce_(0, labels, values, together)
        counts += torch.bincount(labels, minlength=groups.count + 1)
    if aggregate == "mean":
        totals /= counts
    elif aggregate == "l2":
        totals = totals.sqrt()
    return torch.where(counts > 0, totals, torch.inf)[:-1]
