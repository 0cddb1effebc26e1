"""Mask codecs: a mask, a flat bool array here, encoded as one stream of bytes, and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ..types import Array, Shape
from .bitpack import count, pack, packed_size, unpack
from .n_of_m import decode_n_of_m, encode_n_of_m
from .rice import decode_rice, encode_rice

# The most entries of a weight for each stored byte, so that a small file cannot claim a large tensor.
MOST_ENTRIES_A_BYTE = 2048


class MaskCodec(NamedTuple):
    """One mask codec.

    `encode`: mask and shape -> bytes, None for a mask that it cannot encode.
    `decode`: bytes, shape and the number of kept entries (None: unknown) -> mask; ValueError for bytes that encode no
    mask of that shape and number, before it allocates more than the bytes account for.
    `size`: shape -> bytes, None if that depends on the mask.
    """

    encode: Callable[[Array, Shape], Array | None]
    decode: Callable[[Array, Shape, int | None], Array]
    size: Callable[[Shape], int | None]


def _decode_all(stream: Array, shape: Shape, kept: int | None) -> Array:
    size = math.prod(shape)
    if stream.size or kept not in (None, size):
        raise ValueError(f"it keeps all of {size} entries, {kept} are stored")
    return np.ones(size, np.bool_)


def _decode_bitmask(stream: Array, shape: Shape, kept: int | None) -> Array:
    if stream.size != packed_size(shape):
        raise ValueError("its mask is of another size")
    if kept is not None and count(stream) != kept:
        raise ValueError(f"its mask keeps {count(stream)} entries, {kept} are stored")
    return unpack(stream, math.prod(shape))


def _free(_: Shape) -> None:
    return None


ALL = MaskCodec(lambda mask, _: np.empty(0, np.uint8) if mask.all() else None, _decode_all, lambda _: 0)
BITMASK = MaskCodec(lambda mask, _: pack(mask), _decode_bitmask, packed_size)
RICE = MaskCodec(encode_rice, decode_rice, _free)
N_OF_M = MaskCodec(encode_n_of_m, decode_n_of_m, _free)
# In the order of their numbers in `units`.
OF_UNITS = (ALL, BITMASK, RICE, N_OF_M)


def encode_units(mask: Array, shape: Shape) -> Array | None:
    """Return an encoded mask: bitmasks of the rows and columns that keep anything, and the encoded mask of those.

    None if all of them do, if nothing is kept, and if the stream would be shorter than MOST_ENTRIES_A_BYTE allows.
    """
    if not shape or not mask.any():
        return None
    by_row = mask.reshape(shape[0], -1)
    live: list[Array] = [np.logical_or.reduce(by_row, axis=1)]
    if len(shape) > 1:
        by_column = np.logical_or.reduce(by_row, axis=0).reshape(shape[1], -1)
        live.append(np.logical_or.reduce(by_column, axis=1))
    if all(axis.all() for axis in live):
        return None
    view = mask.reshape(*shape[:2], math.prod(shape[2:]))[np.ix_(*live)].reshape(-1)
    encoded = [(number, codec.encode(view, _live_shape(shape, live))) for number, codec in enumerate(OF_UNITS)]
    number, stream = min(((n, s) for n, s in encoded if s is not None), key=lambda item: (item[1].size, item[0]))
    stream = np.concatenate([*map(pack, live), np.array([number], np.uint8), stream])
    return stream if mask.size <= MOST_ENTRIES_A_BYTE * stream.size else None


def decode_units(stream: Array, shape: Shape, kept: int | None) -> Array:
    """Return the mask that `encode_units` encoded. Raises ValueError, before it allocates, for any other bytes."""
    ends = list(accumulate(packed_size((axis,)) for axis in shape[:2]))
    if not ends or stream.size <= ends[-1] or stream[ends[-1]] >= len(OF_UNITS):
        raise ValueError("its units are cut short, or of an unknown codec")
    live = [unpack(part, axis) for part, axis in zip(np.split(stream, ends), shape[:2], strict=False)]
    inner = OF_UNITS[stream[ends[-1]]].decode(stream[ends[-1] + 1 :], _live_shape(shape, live), kept)
    mask = np.zeros((*shape[:2], math.prod(shape[2:])), np.bool_)
    mask[np.ix_(*live)] = inner.reshape(*_live_shape(shape[:2], live), math.prod(shape[2:]))
    return mask.reshape(-1)


def _live_shape(shape: Shape, live: Sequence[Array]) -> Shape:
    return tuple(int(np.count_nonzero(alive)) for alive in live) + shape[2:]


UNITS = MaskCodec(encode_units, decode_units, _free)
