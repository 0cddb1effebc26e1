"""How one masked weight becomes stored tensors and comes back. Pure NumPy; docs/format.md specifies each encoding.

Values are handled as the unsigned integers of their bits, flat, in C order; masks as flat bool arrays, True = keep.
A new encoding is one more row of ENCODINGS; those that were released stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from .container import Array, Shape

Source: TypeAlias = Callable[[], Array]

# The longer names of "bitmask" and ".kept" cost the header this much: to save less, whole values make a smaller file.
_HEADER_COST = 8
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


class Encoding(NamedTuple):
    """One way to store a masked weight, as tensors named by the weight's name and a suffix.

    `encode`: suffix -> function that returns that tensor's elements; it calls for the values and the mask it needs.
    `layout`: the weight's shape -> suffix -> (dtype, shape) that a file must show before anything is read; dtype "" is
    the weight's own, and a size of None is free.
    `decode`: the stored elements by suffix and the number of entries -> values and mask; ValueError if they disagree.
    """

    encode: Mapping[str, Callable[[Source, Source], Array]]
    layout: Callable[[Shape], dict[str, tuple[str, tuple[int | None, ...]]]]
    decode: Callable[[Mapping[str, Array], int], tuple[Array, Array]]


def choose(size: int, kept: int, width: int, *, raw: bool) -> str:
    """Return the name of the smallest encoding for `size` entries of `width` bytes, `kept` of them kept.

    `raw` asks for the values under the mask as well.
    """
    if raw:
        return "raw"
    return "bitmask" if (size - kept) * width > _HEADER_COST else "whole"


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
    return int(_BITS_OF_BYTE[packed].sum(dtype=np.int64))


def packed_size(shape: Shape) -> int:
    """Return the bytes that a mask of this shape takes."""
    return (math.prod(shape) + 7) // 8


def with_zeros(values: Array, mask: Array) -> Array:
    """Return the effective weight: removed entries are +0.0. `values` itself where all are kept."""
    return values if mask.all() else np.where(mask, values, values.dtype.type(0))


def _from_kept(parts: Mapping[str, Array], size: int) -> tuple[Array, Array]:
    if count(parts[".mask"]) != parts[".kept"].size:
        raise ValueError(f"its mask keeps {count(parts['.mask'])} entries, {parts['.kept'].size} are stored")
    mask = unpack(parts[".mask"], size)
    values = np.zeros(size, dtype=parts[".kept"].dtype)
    values[mask] = parts[".kept"]
    return values, mask


def _from_whole(parts: Mapping[str, Array], size: int) -> tuple[Array, Array]:
    mask = unpack(parts[".mask"], size)
    if ((parts[""] != 0) > mask).any():
        raise ValueError("its mask removes entries that are not zero")
    return parts[""], mask


def _from_raw(parts: Mapping[str, Array], size: int) -> tuple[Array, Array]:
    return parts[""], unpack(parts[".mask"], size)


def _whole_layout(shape: Shape) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    return {"": ("", shape), ".mask": ("U8", (packed_size(shape),))}


def _bitmask_layout(shape: Shape) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    return {".kept": ("", (None,)), ".mask": ("U8", (packed_size(shape),))}


def _mask(_: Source, mask: Source) -> Array:
    return pack(mask())


def _kept(values: Source, mask: Source) -> Array:
    content: Array = values()[mask()]
    return content


def _effective(values: Source, mask: Source) -> Array:
    return with_zeros(values(), mask())


def _everything(values: Source, _: Source) -> Array:
    return values()


ENCODINGS: dict[str, Encoding] = {
    "bitmask": Encoding({".kept": _kept, ".mask": _mask}, _bitmask_layout, _from_kept),
    "whole": Encoding({"": _effective, ".mask": _mask}, _whole_layout, _from_whole),
    "raw": Encoding({"": _everything, ".mask": _mask}, _whole_layout, _from_raw),
}
