"""Exact selection of the entries with the lowest scores, without sorting or copying all of them.

Scores are compared as integers made of their float bits, so every float dtype is exact and -0.0 equals 0.0. The
threshold is found sixteen bits at a time from histograms; among entries equal to it the lower index goes first.

On the CPU the integers are NumPy arrays, elsewhere tensors; the code uses operators that both have. NumPy compares and
selects integers up to ten times faster than torch, and on one thread, so that a busy machine matters less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...errors import SparsifyError
from ...processes.ranks import Group, together
from .shared_selection import sum_numbers, ties_here

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DIGIT = 16  # bits of a key that one histogram resolves
_ROWS_AT_ONCE = 1 << 23  # entries

Integers: TypeAlias = Any  # numpy.ndarray | Tensor


@dataclass(frozen=True)
class ScoredTensor:
    """The scores of one weight and the mask that a selection writes, all of one shape.

    `absolute`: the scores are |scores|, computed on the fly. `allowed`: the entries that may be kept, None for all; it
    may be the mask itself. `name` is the weight's, for errors. With a `group` the tensors are the rows of this process,
    which follow those of the processes before it.
    """

    name: str
    scores: Tensor
    mask: Tensor
    absolute: bool = False
    allowed: Tensor | None = None
    group: Group = None


def not_a_number(name: str) -> SparsifyError:
    """Return the error for a NaN among the scores of the weight `name`."""
    return SparsifyError(f"{name}: a score is NaN, so its weights cannot be compared (has training diverged?)")


def remove_lowest(tensors: Sequence[ScoredTensor], count: int) -> None:
    """Write masks that remove the `count` lowest-scored entries of all tensors together; ties go by tensor, then index.

    Entries that may not be kept are removed first, even if they are more than `count`. Raises SparsifyError for a NaN
    score, naming the weight, without changing a mask.
    """
    tensors = [_flat(scored) for scored in tensors]
    group = tensors[0].group if tensors else None
    barred = [
        scored.allowed.numel() - int(scored.allowed.count_nonzero()) for scored in tensors if scored.allowed is not None
    ]
    sizes = [sum(scored.mask.numel() for scored in tensors), sum(barred)]
    size, least = (int(number) for number in _over_all(np.array(sizes), tensors))
    count = max(count, least)
    if count <= 0 or count >= size:
        with together(group):
            for _ in _keys(tensors, check=True) if tensors else ():  # refuses a NaN here too
                pass
        for scored in tensors:
            scored.mask.fill_(count <= 0)
        return
    threshold, ties, surplus = _threshold(tensors, count)
    shares = _ties_of_each(tensors, threshold, ties) if surplus and group is not None else {}
    for scored, chunk, keys in _keys(tensors):
        ties = shares.pop(id(scored), ties)
        keep = keys > threshold
        if surplus:  # of the entries equal to the threshold, all but the first `ties` stay
            equal = keys == threshold
            here = int(equal.sum())
            if ties < here:
                keep |= equal & (equal.cumsum(0) > ties) if ties else equal
            ties = max(0, ties - here)
        target = _integers(scored.mask[chunk])
        target[...] = keep.reshape(target.shape)


def _threshold(tensors: Sequence[ScoredTensor], count: int) -> tuple[int, int, bool]:
    """Return the `count`-th lowest key, how many equal to it are removed, and whether others equal to it stay."""
    top = _common_dtype(tensors).itemsize * 8 - _DIGIT
    prefix, remaining, found = 0, count, 0
    for shift in range(top, -1, -_DIGIT):
        histogram = np.zeros(2**_DIGIT, np.int64)
        with together(tensors[0].group if shift == top else None):
            for _, _, keys in _keys(tensors, check=shift == top):
                if shift == top:
                    histogram += _histogram(keys >> shift, -(2 ** (_DIGIT - 1)))
                else:
                    inside = keys[(keys >> (shift + _DIGIT)) == prefix]
                    histogram += _histogram((inside >> shift) & (2**_DIGIT - 1), 0)
        histogram = _over_all(histogram, tensors)
        below = histogram.cumsum()
        digit = int(np.searchsorted(below, remaining))
        found = int(histogram[digit])
        remaining -= int(below[digit]) - found
        prefix = digit - 2 ** (_DIGIT - 1) if shift == top else (prefix << _DIGIT) | digit
    return prefix, remaining, remaining < found


def _over_all(numbers: Any, tensors: Sequence[ScoredTensor]) -> Any:
    """Return the sum of numbers over the processes that hold parts of the tensors."""
    return sum_numbers(numbers, tensors[0].group, tensors[0].scores.device) if tensors else numbers


def _ties_of_each(tensors: Sequence[ScoredTensor], threshold: int, ties: int) -> dict[int, int]:
    """Return by tensor id how many of this process's entries equal to the threshold are removed."""
    equal = dict.fromkeys(map(id, tensors), 0)
    for scored, _, keys in _keys(tensors):
        equal[id(scored)] += int((keys == threshold).sum())
    return dict(zip(equal, ties_here(list(equal.values()), ties, tensors[0].group), strict=True))


def _histogram(digits: Integers, lowest: int) -> Integers:
    """Return the counts of the 2^16 numbers from `lowest` on."""
    if isinstance(digits, Tensor):
        return torch.bincount(digits.long() - lowest, minlength=2**_DIGIT).cpu().numpy()
    return np.bincount(digits.astype(np.int64) - lowest, minlength=2**_DIGIT)


def remove_lowest_in_rows(scored: ScoredTensor, counts: Tensor) -> None:
    """Write a mask that removes from each row of `scored`, a matrix, its own number of lowest-scored entries.

    `counts` holds one integer per row. Ties go by index; entries that may not be kept are removed first. Raises
    SparsifyError for a NaN score, naming the weight; the mask may then be partly changed.
    """
    rows, width = scored.mask.shape
    if width == 0:
        return
    dtype = _common_dtype([scored])
    at_once = max(1, _ROWS_AT_ONCE // width)
    for start in range(0, rows, at_once):
        chunk = slice(start, start + at_once)
        keys = _chunk_keys(scored, chunk, dtype).reshape(-1, width)
        remove = counts[chunk].to(scored.scores.device)
        if scored.allowed is not None:
            remove = torch.maximum(remove, width - kept_in_rows(scored.allowed[chunk]))
        _integers(scored.mask[chunk])[...] = _keep_in_rows(keys, _integers(remove))


def _keep_in_rows(keys: Integers, remove: Integers) -> Integers:
    """Return which entries of each row of `keys` stay when its `remove` lowest are removed, ties by index."""
    threshold = _row_thresholds(keys, remove)[:, None]
    keep, equal = keys > threshold, keys == threshold
    ties = remove - (keys < threshold).sum(1)
    surplus = equal.sum(1) > ties
    if bool(surplus.any()):
        some = equal[surplus]
        keep[surplus] |= some & (some.cumsum(1) > ties[surplus][:, None])
    return keep


def kept_in_rows(mask: Tensor) -> Tensor:
    """Return how many entries of each row of a mask [rows, columns] are True, as int64."""
    if mask.device.type != "cpu":
        return mask.sum(1)
    return torch.from_numpy(np.asarray(np.count_nonzero(mask.numpy(), axis=1), np.int64))


def _row_thresholds(keys: Integers, remove: Integers) -> Integers:
    """Return the `remove`-th lowest key of each row; the lowest where nothing is removed."""
    rank = (remove.clip(1) - 1)[:, None]
    if isinstance(keys, Tensor):
        return keys.sort(dim=1).values.gather(1, rank)[:, 0]
    # Not numpy.partition, which is ten times slower than sorting if many keys are equal, as barred entries are.
    return np.take_along_axis(np.sort(keys, axis=1), rank, 1)[:, 0]


def _flat(scored: ScoredTensor) -> ScoredTensor:
    """Return the tensor flattened if that needs no copy, so that it can be cut into chunks of any size."""
    tensors = {"scores": scored.scores, "mask": scored.mask}
    if scored.allowed is not None:
        tensors["allowed"] = scored.allowed
    if not all(tensor.is_contiguous() for tensor in tensors.values()):
        return scored
    return replace(scored, **{name: tensor.view(-1) for name, tensor in tensors.items()})  # type: ignore[arg-type]


def _keys(tensors: Sequence[ScoredTensor], *, check: bool = False) -> Iterator[tuple[ScoredTensor, slice, Tensor]]:
    """Yield cache-sized chunks of every tensor, as (tensor, slice of its first dimension, flat keys)."""
    dtype = _common_dtype(tensors)
    for scored in tensors:
        if scored.scores.numel() == 0:
            continue
        target = 1 << 18 if scored.scores.device.type == "cpu" else 1 << 26
        rows = scored.scores.shape[0]
        step = max(1, target * rows // scored.scores.numel())
        for start in range(0, rows, step):
            chunk = slice(start, start + step)
            yield scored, chunk, _chunk_keys(scored, chunk, dtype, check=check)


def _chunk_keys(scored: ScoredTensor, chunk: slice, dtype: torch.dtype, *, check: bool = True) -> Integers:
    """Return integers in the order of the scores, equal where these are, and the lowest where `allowed` is False."""
    values = scored.scores[chunk].reshape(-1).to(dtype)
    integer = _INTEGER[dtype.itemsize]
    limits = torch.iinfo(integer)
    bits = _integers(values.view(integer))
    magnitude = bits & limits.max
    allowed = None if scored.allowed is None else scored.allowed[chunk].reshape(-1)
    infinity = int(torch.tensor(torch.inf, dtype=dtype, device="cpu").view(integer))
    if check and int(magnitude.max()) > infinity:
        wrong = values.isnan() if allowed is None else values.isnan() & allowed
        if bool(wrong.any()):
            raise not_a_number(scored.name)
    if scored.absolute:
        keys = magnitude
    else:
        sign = bits >> (limits.bits - 1)  # 0, or -1 for a negative score, which becomes minus its magnitude
        keys = (magnitude ^ sign) - sign
    if allowed is None:
        return keys
    if isinstance(keys, Tensor):
        return keys.masked_fill_(~allowed, limits.min)
    barred = _integers(allowed).astype(keys.dtype) - 1  # 0, or all bits set
    return (keys & ~barred) | (barred << (limits.bits - 1))


def _integers(tensor: Tensor) -> Integers:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _common_dtype(tensors: Sequence[ScoredTensor]) -> torch.dtype:
    return reduce(torch.promote_types, (scored.scores.dtype for scored in tensors))
