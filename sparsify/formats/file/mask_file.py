"""Reading files that hold masks alone: no model is built, no torch is imported (docs/masks.md)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SparsifyError
from ..codec.mask_codecs import MOST_ENTRIES_A_BYTE
from ..codec.weight_encodings import ENCODINGS
from ..types import Array, Shape
from .container import Header, checksums, is_shape, open_file, read_part
from .metadata import Contents, Metadata, read_contents

FORMAT = "sparsify-masks"
SUFFIX = ".mask"

# The mask codecs of the sparse format, by the names of its encodings.
CODECS = {name: row.codec for name, row in ENCODINGS.items() if row.values == "kept"}


@dataclass(frozen=True)
class StoredMask:
    """One mask of a file: the parameter's name and shape, the number of entries kept, and the encoding.

    `also`: the parameter is not a weight, and sparsities do not count it.
    """

    name: str
    encoding: str
    shape: Shape
    kept: int
    also: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def shortest(mask: Array, shape: Shape) -> tuple[str, Array]:
    """Return the name of the codec with the shortest encoding of a mask, flat and bool, and that encoding."""
    encoded = {name: codec.encode(mask, shape) for name, codec in CODECS.items()}
    found = {
        name: stream for name, stream in encoded.items() if stream is not None and _accounted(stream.size, mask.size)
    }
    name = min(found, key=lambda way: found[way].size)
    return name, found[name]


def _accounted(stored: int, entries: int) -> bool:
    """Return whether a reader accepts `stored` bytes for so many entries, for which it will allocate."""
    return entries <= MOST_ENTRIES_A_BYTE * stored


@dataclass(frozen=True)
class MaskSummary:
    """The contents of a file of masks, with the metadata of their model.

    `masked_entries` and `kept` count the entries of weights, `sparsity` is the fraction of them removed (None without
    any), `bytes_file` the size on disk.
    """

    path: str
    metadata: Metadata
    rows: tuple[StoredMask, ...]
    masked_entries: int
    kept: int
    sparsity: float | None
    bytes_file: int


def are_masks_alone(contents: Contents) -> bool:
    """Return whether a file holds masks and no weights."""
    return contents.header.metadata.get("format") == FORMAT


def inspect_masks(path: str | os.PathLike[str]) -> MaskSummary | None:
    """Return a summary of the file of masks at `path`, None for a file of another kind.

    The masks themselves are not read. Raises SparsifyError for a file that is missing, truncated or altered.
    """
    contents = read_contents(path)
    if not are_masks_alone(contents):
        return None
    rows = table_of(path, contents)
    total, kept = sum(row.size for row in rows if not row.also), sum(row.kept for row in rows if not row.also)
    sparsity = (total - kept) / total if total else None
    size = os.path.getsize(path)
    return MaskSummary(os.fspath(path), contents.metadata, tuple(rows), total, kept, sparsity, size)


def read_masks(path: str | os.PathLike[str], contents: Contents) -> dict[str, Array]:
    """Return the masks of a file of masks by name, flat and bool, every checksum and count verified."""
    wanted, found = checksums(contents.header), {}
    with open_file(path) as file:
        for row in table_of(path, contents):
            name = row.name + SUFFIX
            stored = read_part(file, contents.header, name, wanted[name])
            try:
                mask = CODECS[row.encoding].decode(stored, row.shape, row.kept)
            except ValueError as error:
                raise SparsifyError(f"{os.fspath(path)}: altered: {row.name!r}: {error}") from error
            if int(np.count_nonzero(mask)) != row.kept:
                raise SparsifyError(f"{os.fspath(path)}: altered: {row.name!r}: its mask keeps another number")
            found[row.name] = mask
    return found


def table_of(path: str | os.PathLike[str], contents: Contents) -> list[StoredMask]:
    """Return the rows of a file of masks, checked against its stored tensors."""
    if not contents.header.sealed:
        raise SparsifyError(f"{os.fspath(path)}: altered: a file of masks without the checksum of its header")
    try:
        table = json.loads(contents.header.metadata.get("masks", ""))
        if not isinstance(table, dict) or {f"{name}{SUFFIX}" for name in table} != contents.header.entries.keys():
            raise ValueError("its table of masks is not that of its tensors")
        return [_row(contents.header, name, value) for name, value in table.items()]
    except (ValueError, RecursionError) as error:
        raise SparsifyError(f"{os.fspath(path)}: altered, or not a file of masks: {error}") from error


def names_of_dense(path: str | os.PathLike[str], contents: Contents) -> list[str]:
    """Return the names of the parameters without a mask in the model that a file of masks is of."""
    try:
        names = json.loads(contents.header.metadata.get("dense", ""))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it does not tell which parameters have no mask")
    except (ValueError, RecursionError) as error:
        raise SparsifyError(f"{os.fspath(path)}: altered, or not a file of masks: {error}") from error
    return names


def _row(header: Header, name: str, value: Any) -> StoredMask:
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    encoding, shape, kept, also = (found.get(key) for key in ("encoding", "shape", "kept", "also"))
    if not isinstance(encoding, str) or encoding not in CODECS or not is_shape(shape):
        raise ValueError(f"the mask of {name!r} has no known encoding and shape")
    if type(kept) is not int or not 0 <= kept <= math.prod(found["shape"]) or also not in (None, True, False):
        raise ValueError(f"the mask of {name!r} keeps no number of entries that it could")
    row = StoredMask(name, encoding, tuple(found["shape"]), kept, bool(also))
    entry = header.entries[name + SUFFIX]
    if entry.dtype != "U8" or len(entry.shape) != 1 or not _accounted(entry.shape[0], row.size):
        raise ValueError(f"the mask of {name!r} does not fit its shape")
    return row
