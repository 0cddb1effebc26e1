"""Inspecting a file by its header and masks alone: no model is built, no torch is imported."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...errors import SparsifyError
from ..codec.bitpack import count
from ..types import Shape
from .container import DTYPES, Entry, checksums, open_file, read_part
from .metadata import Contents, MaskedEntry, Metadata, read_contents


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the model. `kept` and `sparsity` (fraction removed) are None for a tensor without a mask.

    `encoding`: a name of `weight_encodings.ENCODINGS` for a masked weight, "plain" for any other tensor, "alias of
    NAME" for another name of a stored tensor. `bytes_stored` counts values and mask, `bytes_dense` the tensor as dense,
    `bytes_limit` is the lower bound of any encoding (`limit`), None for a tensor without a mask. `original` is the
    shape before a shrink, None if the tensor was not cut; `added`: the shrink added the tensor.
    """

    name: str
    shape: Shape
    dtype: str
    encoding: str
    kept: int | None
    sparsity: float | None
    bytes_stored: int
    bytes_dense: int
    original: Shape | None = None
    added: bool = False
    bytes_limit: int | None = None

    @property
    def is_alias(self) -> bool:
        """Whether it is another name of a stored tensor."""
        return self.encoding.startswith("alias of ")


@dataclass(frozen=True)
class FileSummary:
    """A file's tensors in the model's order, its metadata, and totals.

    `entries` and `masked_entries` count numbers, aliases once; `sparsity` is that of the masked weights (None without
    any), `bytes_file` the size on disk, `bytes_dense` that of the same tensors stored dense. Masked parameters that are
    not weights have rows, but do not count as masked here. `original_entries` counts the numbers before a shrink
    (`entries` without one), `attributes` are those that the shrink changed. `bytes_masked` is the size of the masked
    weights in the file without the header, and `bytes_limit` its lower bound.
    """

    path: str
    metadata: Metadata
    rows: tuple[TensorRow, ...]
    entries: int
    masked_entries: int
    kept: int
    sparsity: float | None
    bytes_file: int
    bytes_dense: int
    original_entries: int
    attributes: Mapping[str, Any]
    bytes_masked: int
    bytes_limit: int

    @property
    def bytes_original(self) -> int:
        """The bytes of the dense tensors before a shrink, without biases that the shrink added."""
        sizes = [
            row.bytes_dense // max(1, math.prod(row.shape)) * math.prod(row.original or row.shape)
            for row in self.rows
            if not row.added and not row.is_alias
        ]
        return sum(sizes)

    @property
    def masked_rows(self) -> list[TensorRow]:
        """The tensors with masks, each once."""
        return [row for row in self.rows if row.kept is not None and not row.is_alias]


def inspect_file(path: str | os.PathLike[str]) -> FileSummary:
    """Return a summary of the safetensors file at `path`, of sparsify or any other writer.

    Reads the header and the masks, whose checksums are verified; values are not read. Raises SparsifyError for a file
    that is missing, truncated, altered or not safetensors.
    """
    contents = read_contents(path)
    kept = _kept(path, contents)
    rows: dict[str, TensorRow] = {}
    for name in stored_names(contents):
        masked = contents.masked.get(name)
        rows[name] = (
            _plain(name, contents.header.entries[name]) if masked is None else _masked(name, masked, kept[name])
        )
    weights = [name for name, entry in contents.masked.items() if not entry.also]
    total, left = sum(math.prod(rows[name].shape) for name in weights), sum(kept[name] for name in weights)
    rows = {name: _with_cuts(row, contents) for name, row in rows.items()}
    everything = tuple(rows.values())
    aliases = tuple(
        _with_cuts(replace(rows[name], name=alias, encoding=f"alias of {name}", bytes_stored=0), contents)
        for alias, name in contents.aliases.items()
    )
    return FileSummary(
        path=os.fspath(path),
        metadata=contents.metadata,
        rows=everything + aliases,
        entries=sum(math.prod(row.shape) for row in everything),
        masked_entries=total,
        kept=left,
        sparsity=(total - left) / total if total else None,
        bytes_file=os.path.getsize(path),
        bytes_dense=sum(row.bytes_dense for row in everything),
        original_entries=sum(math.prod(row.original or row.shape) for row in everything if not row.added),
        attributes=contents.cuts.attributes,
        bytes_masked=sum(rows[name].bytes_stored for name in weights),
        bytes_limit=sum(rows[name].bytes_limit or 0 for name in weights),
    )


def limit(size: int, kept: int, width: int) -> float:
    """Return a lower bound on the bytes of `size` entries: `kept` of `width` bytes, and size * H(kept / size) bits.

    H is the binary entropy, the bound for entries that are kept independently with equal probability (Shannon 1948, A
    Mathematical Theory of Communication). A mask with a pattern may take less.
    """
    shares = [share / size for share in (kept, size - kept) if share]
    return kept * width + size * sum(-share * math.log2(share) for share in shares) / 8


def stored_names(contents: Contents) -> list[str]:
    """Return the names of the model's tensors, each once, in the order in which their first parts are listed."""
    owner = {name + suffix: name for name, entry in contents.masked.items() for suffix in entry.parts}
    return list(dict.fromkeys(owner.get(part, part) for part in contents.header.entries))


def _kept(path: str | os.PathLike[str], contents: Contents) -> dict[str, int]:
    """Return the number of kept entries of each masked weight: of its values stored, or of a bitmask's ones."""
    wanted = checksums(contents.header)
    kept = {}
    with open_file(path) as file:
        for name, entry in contents.masked.items():
            stored = entry.parts.get(".kept")
            kept[name] = stored.shape[0] if stored is not None else math.prod(entry.shape)
            if ".mask" not in entry.parts:
                continue
            ones = count(read_part(file, contents.header, f"{name}.mask", wanted[f"{name}.mask"]))
            kept[name], stated = ones, kept[name]
            if stored is not None and ones != stated:
                raise SparsifyError(f"{os.fspath(path)}: altered: {name}: its mask and its kept values disagree")
    return kept


def _plain(name: str, entry: Entry) -> TensorRow:
    size = entry.end - entry.begin
    return TensorRow(name, entry.shape, entry.dtype, "plain", None, None, size, size)


def _masked(name: str, entry: MaskedEntry, kept: int) -> TensorRow:
    size = math.prod(entry.shape)
    sparsity = (size - kept) / size if size else 0.0
    stored = sum(part.end - part.begin for part in entry.parts.values())
    width = DTYPES[entry.dtype]
    least = math.ceil(limit(size, kept, width))
    return TensorRow(
        name, entry.shape, entry.dtype, entry.encoding, kept, sparsity, stored, size * width, bytes_limit=least
    )


def _with_cuts(row: TensorRow, contents: Contents) -> TensorRow:
    original = contents.cuts.original(row.name, row.shape)
    return replace(row, original=original or row.original, added=row.name in contents.cuts.added)
