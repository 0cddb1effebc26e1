"""Mask codec of Rice-coded deltas: the gaps between kept entries, with a parameter chosen for the tensor.

It is `delta` in docs/format.md.

Rice, Plaunt 1971, Adaptive Variable-Length Coding; Golomb 1966, Run-Length Encodings: for entries that are kept
independently of each other, no other code that encodes gaps one by one is notably shorter. The low digits and the unary
quotients of the gaps are stored separately, so that each is decoded in one vector operation: with r_i the quotient and
l_i the low digits of gap i, the one that ends quotient i is bit r_0 + ... + r_i + i, and entry i is at
((r_0 + ... + r_i) << digits) + (l_0 + ... + l_i) + i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..types import Array, Shape
from .bitpack import BLOCK, check_planes, count, from_planes, pack, packed_size, to_planes

_MOST_DIGITS = 8
_REMOVED = 0x80


def encode_rice(mask: Array, _: Shape) -> Array | None:
    """Return a mask as Rice-coded gaps between its kept entries, or between its removed ones if they are fewer.

    None where a bitmask is shorter.
    """
    kept = int(np.count_nonzero(mask))
    removed = 2 * kept > mask.size
    marked = ~mask if removed else mask
    total = (mask.size - kept if removed else kept) + 1
    # Positions within a block fit two bytes.
    starts = range(0, mask.size, BLOCK)
    found = [np.flatnonzero(marked[start : start + BLOCK]).astype(np.uint16) for start in starts]
    low = _low(found, mask.size, total)
    planes = to_planes(low, _MOST_DIGITS)
    in_planes = [0]
    for digit in range(_MOST_DIGITS):
        in_planes.append(in_planes[-1] + (count(planes[digit]) << digit))
    lengths = [total + ((mask.size + 1 - total - low_sum) >> digits) for digits, low_sum in enumerate(in_planes)]
    sizes = [digits * planes.shape[1] + packed_size((length,)) for digits, length in enumerate(lengths)]
    digits = sizes.index(min(sizes))
    if not digits:
        return None  # the unary code alone is a bitmask, and longer
    first = np.array([digits | (_REMOVED if removed else 0)], np.uint8)
    return np.concatenate([first, planes[:digits].reshape(-1), _unary(found, low, digits, lengths[digits])])


def decode_rice(stream: Array, shape: Shape, kept: int | None) -> Array:
    """Return the mask that `encode_rice` encoded. Raises ValueError, before it allocates, for any other bytes."""
    size = math.prod(shape)
    if not stream.size or kept is None or kept > size:
        raise ValueError("its gaps are missing")
    removed, digits = bool(stream[0] & _REMOVED), int(stream[0] & ~np.uint8(_REMOVED))
    total = (size - kept if removed else kept) + 1
    width = packed_size((total,))
    if digits > _MOST_DIGITS or 1 + (digits + 1) * width > stream.size:
        raise ValueError(f"its gaps are not {total} in number")
    planes, unary = stream[1 : 1 + digits * width].reshape(digits, width), stream[1 + digits * width :]
    check_planes(planes, total)
    if not unary[-1] or count(unary) != total:
        raise ValueError(f"its gaps are not {total} in number")
    rests = 8 * (unary.size - 1) + int(unary[-1]).bit_length() - total
    low_sum = sum(count(plane) << digit for digit, plane in enumerate(planes))
    if (rests << digits) + low_sum + total - 1 != size:
        raise ValueError("its gaps do not add up to its size")
    mask = np.full(size, removed)
    done, before = 0, 0
    for begin in range(0, unary.size, BLOCK // 8):
        ends = np.flatnonzero(np.unpackbits(unary[begin : begin + BLOCK // 8], bitorder="little")) + 8 * begin
        index = np.arange(done, done + ends.size)
        sums = np.cumsum(from_planes(planes, done, done + ends.size, np.uint8), dtype=np.int64) + before
        positions = ((ends - index) << digits) + sums + index
        done += ends.size
        before = int(sums[-1]) if sums.size else before
        mask[positions[:-1] if done == total else positions] = not removed
    return mask


def _blocks(found: list[Array]) -> Iterator[Array]:
    for number, within in enumerate(found):
        yield within.astype(np.int64) + number * BLOCK


def _low(found: list[Array], size: int, total: int) -> Array:
    """Return the lowest eight digits of each gap before a marked entry and of the one after the last."""
    low, done, previous = np.empty(total, np.uint8), 0, -1
    for positions in _blocks(found):
        if positions.size:
            low[done : done + positions.size] = np.diff(positions, prepend=previous) - 1
            done, previous = done + positions.size, int(positions[-1])
    low[done] = (size - previous - 1) & 0xFF
    return low


def _unary(found: list[Array], low: Array, digits: int, length: int) -> Array:
    """Return the quotients of the gaps in unary, packed: that many zeros each, and a one."""
    unary, done, before = np.zeros(length, np.bool_), 0, 0
    for positions in _blocks(found):
        index = np.arange(done, done + positions.size)
        remainders = low[done : done + positions.size] & np.uint8((1 << digits) - 1)
        sums = np.cumsum(remainders, dtype=np.int64) + before
        unary[((positions - index - sums) >> digits) + index] = True
        done += positions.size
        before = int(sums[-1]) if sums.size else before
    unary[-1] = True
    return pack(unary)
