"""Encodings of one masked weight as stored tensors. Pure NumPy; docs/format.md specifies each of them.

Values are the unsigned integers of their bits, flat, in C order; masks are flat bool arrays, True = keep. A new
encoding is one more row of ENCODINGS; released ones stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..types import Array, Shape
from .bitpack import gather, scatter
from .mask_codecs import ALL, BITMASK, N_OF_M, RICE, UNITS, MaskCodec

# Bytes of a stored tensor in the header besides its name, shape and two offsets: 49 of JSON, 9 of a checksum.
_HEADER_OF_TENSOR = 58


class Encoding(NamedTuple):
    """One way to store a masked weight, as tensors named by the weight's name and a suffix.

    `values`: which are stored, "kept" (in C order, as `.kept`), "effective" or "all" (in the weight's own name and
    shape). `suffix`: that of the tensor with the encoded mask, None where there is none. `since`: the first version of
    the format that has it.
    """

    values: str
    suffix: str | None
    codec: MaskCodec
    since: int

    def layout(self, shape: Shape) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Return the stored tensors of a weight: suffix -> (dtype, shape), for checks before anything is read.

        dtype "" is the weight's own, and a size of None is free.
        """
        found: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        found[".kept" if self.values == "kept" else ""] = ("", (None,) if self.values == "kept" else shape)
        if self.suffix is not None:
            found[self.suffix] = ("U8", (self.codec.size(shape),))
        return found

    def content(self, values: Array, mask: Array) -> Array:
        """Return the stored values of a weight."""
        if self.values == "kept":
            return gather(values, mask, int(np.count_nonzero(mask)))
        return with_zeros(values, mask) if self.values == "effective" else values

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> tuple[Array, Array]:
        """Return values and mask of the stored tensors by suffix. Raises ValueError if they disagree."""
        kept = parts.get(".kept")
        stream = np.empty(0, np.uint8) if self.suffix is None else parts[self.suffix]
        mask = self.codec.decode(stream, shape, None if kept is None else kept.size)
        if kept is not None:
            return scatter(kept, mask), mask
        if self.values == "effective" and ((parts[""] != 0) > mask).any():
            raise ValueError("its mask removes entries that are not zero")
        return parts[""], mask


ENCODINGS: dict[str, Encoding] = {
    "bitmask": Encoding("kept", ".mask", BITMASK, since=1),
    "whole": Encoding("effective", ".mask", BITMASK, since=1),
    "raw": Encoding("all", ".mask", BITMASK, since=1),
    "full": Encoding("effective", None, ALL, since=3),
    "delta": Encoding("kept", ".gaps", RICE, since=3),
    "n:m": Encoding("kept", ".groups", N_OF_M, since=3),
    "units": Encoding("kept", ".units", UNITS, since=3),
}


class Choice(NamedTuple):
    """The encoding of a weight: a row of ENCODINGS, the weight's shape and the bytes of its encoded mask, or None."""

    encoding: str
    shape: Shape
    stream: Array | None


def choose(name: str, mask: Array, shape: Shape, width: int, *, raw: bool = False) -> Choice:
    """Return the encoding with the smallest size for a weight with entries of `width` bytes.

    Each row of ENCODINGS is tried; its part of the header counts, up to the number of digits of its offsets. With `raw`
    the values under the mask are stored as well.
    """
    kept = int(np.count_nonzero(mask))
    rows = {encoding: row for encoding, row in ENCODINGS.items() if raw == (row.values == "all")}
    codecs = {row.suffix: row.codec for row in rows.values()}
    encoded = {suffix: codec.encode(mask, shape) for suffix, codec in codecs.items()}
    best: tuple[int, Choice] | None = None
    for encoding, row in rows.items():
        stream = encoded[row.suffix]
        if stream is None:
            continue
        size = len(encoding) + stream.size + (kept if row.values == "kept" else mask.size) * width
        for suffix, (_, sizes) in row.layout(shape).items():
            size += _HEADER_OF_TENSOR + len(name + suffix) + len(str(sizes)) + 2 * len(str(mask.size * width))
        if best is None or size < best[0]:
            best = size, Choice(encoding, shape, None if row.suffix is None else stream)
    assert best is not None  # a bitmask encodes any mask
    return best[1]


def with_zeros(values: Array, mask: Array) -> Array:
    """Return the effective weight: removed entries are +0.0. `values` itself if all are kept."""
    return values if mask.all() else np.where(mask, values, values.dtype.type(0))
