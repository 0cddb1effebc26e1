"""Exact selection of the entries with the lowest scores, without sorting or copying all of them.

Scores are compared as integers made of their float bits, so every float dtype is exact and -0.0 equals 0.0. The
threshold is found sixteen bits at a time from histograms; among entries equal to it the lower index goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..errors import SparsifyError

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DIGIT = 16  # bits of a key that one histogram resolves
_ROWS_AT_ONCE = 1 << 23  # entries


@dataclass(frozen=True)
class Part:
    """The scores of one weight and the mask that a selection writes, all of one shape.

    `absolute`: the scores are |scores|, which is then taken on the fly. `alive`: the entries that may be kept, None
    for all; it may be the mask itself. `name` is the weight's, for errors.
    """

    name: str
    scores: Tensor
    mask: Tensor
    absolute: bool = False
    alive: Tensor | None = None


def remove_lowest(parts: Sequence[Part], count: int) -> None:
    """Write masks that remove the `count` lowest-scored entries of all parts together; ties go by part, then by index.

    Entries that may not be kept are removed first, even if they are more than `count`. Raises SparsifyError for a NaN
    score, naming the weight; no mask is changed then.
    """
    parts = [_flat(part) for part in parts]
    size = sum(part.mask.numel() for part in parts)
    barred = [part.alive.numel() - int(part.alive.count_nonzero()) for part in parts if part.alive is not None]
    count = max(count, sum(barred))
    if count <= 0 or count >= size:
        for part in parts:
            part.mask.fill_(count <= 0)
        return
    threshold, ties, surplus = _threshold(parts, count)
    for part, chunk, keys in _keys(parts):
        keep = keys > threshold
        if surplus:  # of the entries equal to the threshold, all but the first `ties` stay
            equal = keys == threshold
            here = int(equal.count_nonzero())
            if ties < here:
                keep |= equal & (equal.cumsum(0) > ties) if ties else equal
            ties = max(0, ties - here)
        target = part.mask[chunk]
        target.copy_(keep.view(target.shape))


def _threshold(parts: Sequence[Part], count: int) -> tuple[int, int, bool]:
    """Return the `count`-th lowest key, how many equal to it are removed, and whether others equal to it stay."""
    top = _common_dtype(parts).itemsize * 8 - _DIGIT
    prefix, remaining, found = 0, count, 0
    for shift in range(top, -1, -_DIGIT):
        histogram: Tensor | None = None
        for _, _, keys in _keys(parts, check=shift == top):
            if shift == top:
                digits = (keys >> shift).int() + 2 ** (_DIGIT - 1)
            else:
                digits = (keys[(keys >> (shift + _DIGIT)) == prefix] >> shift) & (2**_DIGIT - 1)
            counts = torch.bincount(digits, minlength=2**_DIGIT)
            histogram = counts if histogram is None else histogram.add_(counts.to(histogram.device))
        assert histogram is not None, "some entry is removed, so there are entries"
        below = histogram.cumsum(0)
        digit = int(torch.searchsorted(below, remaining))
        found = int(histogram[digit])
        remaining -= int(below[digit]) - found
        prefix = digit - 2 ** (_DIGIT - 1) if shift == top else (prefix << _DIGIT) | digit
    return prefix, remaining, remaining < found


def remove_lowest_in_rows(part: Part, counts: Tensor) -> None:
    """Write a mask that removes from each row of `part`, a matrix, its own number of lowest-scored entries.

    `counts` holds one integer per row. Ties go by index; entries that may not be kept are removed first. Raises
    SparsifyError for a NaN score, naming the weight; the mask may be changed in part then.
    """
    rows, width = part.mask.shape
    if width == 0:
        return
    dtype = _common_dtype([part])
    at_once = max(1, _ROWS_AT_ONCE // width)
    for start in range(0, rows, at_once):
        chunk = slice(start, start + at_once)
        keys = _chunk_keys(part, chunk, dtype).view(-1, width)
        remove = counts[chunk].to(keys.device).view(-1, 1)
        if part.alive is not None:
            remove = torch.maximum(remove, width - part.alive[chunk].sum(1, keepdim=True))
        threshold = _row_thresholds(keys, remove)
        keep, equal = keys > threshold, keys == threshold
        ties = remove - (keys < threshold).sum(1, keepdim=True)
        surplus = (equal.sum(1, keepdim=True) > ties).squeeze(1)
        if bool(surplus.any()):
            equal = equal[surplus]
            keep[surplus] |= equal & (equal.cumsum(1) > ties[surplus])
        part.mask[chunk] = keep


def _row_thresholds(keys: Tensor, remove: Tensor) -> Tensor:
    """Return, as a column, the `remove`-th lowest key of each row; the lowest where nothing is removed."""
    rank = remove.clamp(min=1)
    if keys.device.type != "cpu":  # torch.kthvalue is refused there in deterministic mode
        return keys.sort(dim=1).values.gather(1, rank - 1)
    thresholds = torch.empty_like(keys[:, :1])
    for k in torch.unique(rank).tolist():
        rows = (rank == k).squeeze(1)
        group = keys if bool(rows.all()) else keys[rows]
        thresholds[rows] = group.kthvalue(k, dim=1, keepdim=True).values
    return thresholds


def _flat(part: Part) -> Part:
    """Return the part in one dimension if that needs no copy; it is then cut into chunks of any size."""
    tensors = {"scores": part.scores, "mask": part.mask}
    if part.alive is not None:
        tensors["alive"] = part.alive
    if not all(tensor.is_contiguous() for tensor in tensors.values()):
        return part
    return replace(part, **{name: tensor.view(-1) for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _keys(parts: Sequence[Part], *, check: bool = False) -> Iterator[tuple[Part, slice, Tensor]]:
    """Yield pieces of every part, small enough for the cache, as (part, slice of its first dimension, flat keys)."""
    dtype = _common_dtype(parts)
    for part in parts:
        if part.scores.numel() == 0:
            continue
        target = 1 << 18 if part.scores.device.type == "cpu" else 1 << 26
        rows = part.scores.shape[0]
        step = max(1, target * rows // part.scores.numel())
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            yield part, chunk, _chunk_keys(part, chunk, dtype, check=check)


def _chunk_keys(part: Part, chunk: slice, dtype: torch.dtype, *, check: bool = True) -> Tensor:
    """Return integers ordered as the scores are, equal where they are equal, lowest where nothing may be kept."""
    values = part.scores[chunk].reshape(-1).to(dtype)
    integer = _INTEGER[dtype.itemsize]
    bits = values.view(integer)
    magnitude = bits & torch.iinfo(integer).max
    alive = None if part.alive is None else part.alive[chunk].reshape(-1)
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(integer))
    if check and int(magnitude.amax()) > infinity:
        wrong = values.isnan() if alive is None else values.isnan() & alive
        if bool(wrong.any()):
            raise SparsifyError(
                f"{part.name}: a score is NaN, so its weights cannot be compared (has training diverged?)"
            )
    if part.absolute:
        keys = magnitude
    else:
        sign = bits >> (8 * dtype.itemsize - 1)  # 0, or -1 for a negative score, which becomes minus its magnitude
        keys = (magnitude ^ sign) - sign
    return keys if alive is None else torch.where(alive, keys, torch.iinfo(integer).min)


def _common_dtype(parts: Sequence[Part]) -> torch.dtype:
    return reduce(torch.promote_types, (part.scores.dtype for part in parts))
