"""Bit packing: masks, eight entries to a byte, and numbers as bit planes, one row of packed bits for each digit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..types import Array, Shape

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
# Entries in a block, at most 2^16, so that temporaries stay small and in the processor's cache.
BLOCK = 1 << 16


def pack(mask: Array) -> Array:
    """Return a mask's bits, eight to a byte: entry i is bit i mod 8 (lowest first) of byte i // 8, padding is zero."""
    return np.packbits(mask, bitorder="little")


def unpack(packed: Array, size: int) -> Array:
    """Return the mask of `size` entries that `pack` packed. Raises ValueError if a padding bit is set."""
    bits = np.unpackbits(packed, bitorder="little").view(np.bool_)
    if bits[size:].any():
        raise ValueError("its mask has bits beyond its last entry")
    return bits[:size]


def count(packed: Array) -> int:
    """Return the number of set bits."""
    ones = (_BITS_OF_BYTE[packed[i : i + BLOCK]].sum(dtype=np.int64) for i in range(0, packed.size, BLOCK))
    return int(sum(ones))


def packed_size(shape: Shape) -> int:
    """Return the bytes that a mask of this shape takes."""
    return (math.prod(shape) + 7) // 8


def to_planes(numbers: Array, digits: int) -> Array:
    """Return the lowest `digits` binary digits of unsigned numbers, one row of packed bits for each digit."""
    planes = np.empty((digits, packed_size(numbers.shape)), np.uint8)
    for digit in range(digits):
        planes[digit] = pack(numbers & numbers.dtype.type(1 << digit))
    return planes


def from_planes(planes: Array, begin: int, end: int, kind: type[np.unsignedinteger]) -> Array:
    """Return the numbers `begin` to `end` of the planes from `to_planes`, as unsigned integers of type `kind`."""
    first, numbers = begin // 8, np.zeros(end - begin, kind)
    for digit, plane in enumerate(planes):
        bits = np.unpackbits(plane[first : packed_size((end,))], bitorder="little")
        numbers |= bits[begin - 8 * first : end - 8 * first].astype(kind) << kind(digit)
    return numbers


def check_planes(planes: Array, size: int) -> None:
    """Raise ValueError if a padding bit of the planes of `size` numbers is set."""
    if size % 8 and planes.size and (planes[:, -1] >> (size % 8)).any():
        raise ValueError("its positions have bits beyond their last number")


def ones(mask: Array) -> Iterator[Array]:
    """Yield the positions of set bits, ascending, block by block."""
    for begin in range(0, mask.size, BLOCK):
        yield np.flatnonzero(mask[begin : begin + BLOCK]) + begin


def gather(values: Array, mask: Array, kept: int) -> Array:
    """Return the `kept` values where the mask is set."""
    found, done = np.empty(kept, values.dtype), 0
    for positions in ones(mask):
        found[done : done + positions.size] = values[positions]
        done += positions.size
    return found


def scatter(kept: Array, mask: Array) -> Array:
    """Return the inverse of `gather`: all values, zeros where the mask is not set."""
    values, done = np.zeros(mask.size, kept.dtype), 0
    for positions in ones(mask):
        values[positions] = kept[done : done + positions.size]
        done += positions.size
    return values
