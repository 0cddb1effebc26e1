"""Import of the sparse weights of compressed-tensors into a dense safetensors file. Needs no torch."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from ..arguments import PATH, takes
from ..errors import SparsifyError
from ..formats.file.container import (
    MAX_RANK,
    Entry,
    Header,
    Part,
    checksums,
    container_chunks,
    is_shape,
    open_file,
    read_header,
    read_part,
)
from ..formats.file.metadata import Metadata, metadata_text
from ..formats.io.atomic import atomic_write
from ..formats.types import Array, Shape
from .registry import FORMATS, check_place

_PART = re.compile(r"(.+)\.(shape|compressed|bitmask|row_offsets)")
_NEEDED = {"shape", "compressed", "bitmask"}
# Suffixes of quantised weights, whose layouts are not supported.
_QUANTISED = (".weight_packed", ".weight_scale", ".scale_packed", ".weight_zero_point", ".weight_g_idx")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Imported:
    """The result of an import: the output's size in bytes and the names of the weights that were compressed.

    `zeros` counts the zeros of these weights, `entries` all their entries.
    """

    size: int
    weights: tuple[str, ...]
    zeros: int
    entries: int


@dataclass(frozen=True)
class _Stored:
    """A tensor in one of the source's files; `checksum` is None where the file has none."""

    path: Path
    header: Header
    name: str
    checksum: str | None

    @property
    def entry(self) -> Entry:
        """Its type, shape and place."""
        return self.header.entries[self.name]

    def read(self) -> Array:
        """Return its elements, flat, as unsigned integers."""
        with open_file(self.path) as file:
            return read_part(file, self.header, self.name, self.checksum)


@takes(source=PATH, out=PATH)
def import_weights(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Imported:
    """Write the sparse weights of `source` to the dense safetensors file `out` and return what was converted.

    `source` is a safetensors file of compressed-tensors (sparse-bitmask or sparse-24-bitmask, of any release), or a
    folder with one, or with shards and their index. Other tensors are copied as they are. Memory holds one tensor at a
    time. Raises SparsifyError, one line, for a source that is missing, truncated, inconsistent or quantised, or in
    which nothing is compressed; nothing is written then.
    """
    check_place(FORMATS["dense"], out)
    path = Path(source)
    stored = _tensors(path)
    weights: dict[str, dict[str, _Stored]] = {}
    parts: dict[str, Part] = {}
    for name, one in stored.items():
        if name.endswith(_QUANTISED):
            raise SparsifyError(f"{path}: the weights are quantised as well ({name}); only sparse ones can be imported")
        found = _PART.fullmatch(name)
        if found:
            weights.setdefault(found[1], {})[found[2]] = one
        else:
            parts[name] = Part(name, one.entry.dtype, one.entry.shape, one.read)
    if not weights:
        raise SparsifyError(f"{path}: nothing in it is compressed as compressed-tensors does; it is dense as it is")
    dense = {}
    for module, pieces in weights.items():
        # Releases before 0.9.0 named the parts by the weight, later ones by its module.
        name = module if module.endswith(".weight") else f"{module}.weight"
        if name in parts:
            raise SparsifyError(f"{path}: {name} is there twice, or once dense and once compressed")
        dense[name] = parts[name] = _weight(path, name, pieces)
    text = metadata_text(Metadata(format="dense"), {}, {})
    size = atomic_write(out, container_chunks(list(parts.values()), text))
    entries = sum(math.prod(part.shape) for part in dense.values())
    kept = sum(math.prod(pieces["compressed"].entry.shape) for pieces in weights.values())
    return Imported(size, tuple(dense), entries - kept, entries)


def _weight(path: Path, name: str, pieces: Mapping[str, _Stored]) -> Part:
    """Return a compressed weight as a dense tensor to write. SparsifyError if its pieces do not fit each other."""
    missing = sorted(_NEEDED - pieces.keys())
    if missing:
        raise SparsifyError(f"{path}: {name} is incomplete: its {' and '.join(missing)} cannot be found")
    shape = _shape(pieces["shape"])
    values, mask = pieces["compressed"].entry, pieces["bitmask"].entry
    # For 2:4 the values are a matrix with one row for each row of the weight, in the same order.
    if not shape or mask.dtype != "U8" or mask.shape != (*shape[:-1], (shape[-1] + 7) // 8):
        raise SparsifyError(f"{path}: altered: {name}: its bitmask is of another shape than the weight")
    if math.prod(values.shape) > math.prod(shape):
        raise SparsifyError(f"{path}: altered: {name}: more values are stored than the weight has")
    return Part(name, values.dtype, shape, partial(_dense, path, name, pieces, shape))


def _shape(stored: _Stored) -> Shape:
    if stored.entry.dtype != "I64" or not 0 < math.prod(stored.entry.shape) <= MAX_RANK:
        raise SparsifyError(f"{stored.path}: altered: {stored.name} is not a weight's shape")
    sizes = stored.read().view("<i8").tolist()
    if not is_shape(sizes):
        raise SparsifyError(f"{stored.path}: altered: {stored.name} is not a weight's shape")
    return tuple(sizes)


def _dense(path: Path, name: str, pieces: Mapping[str, _Stored], shape: Shape) -> Array:
    values, packed = pieces["compressed"].read(), pieces["bitmask"].read()
    dense = np.zeros(math.prod(shape), values.dtype)
    if not dense.size:
        return dense
    rows = np.unpackbits(packed.reshape(-1, (shape[-1] + 7) // 8), axis=-1, bitorder="little")
    mask = rows[:, : shape[-1]].reshape(-1).view(np.bool_)
    kept = int(np.count_nonzero(mask))
    if kept != values.size or rows[:, shape[-1] :].any():
        raise SparsifyError(f"{path}: altered: {name}: its bitmask keeps {kept} entries, {values.size} are stored")
    dense[mask] = values
    return dense


def _tensors(path: Path) -> dict[str, _Stored]:
    """Return the tensors of a file, or of a folder's file or shards, by name."""
    found: dict[str, _Stored] = {}
    for file in _files(path):
        header = read_header(file)
        if header.metadata.get("format") == "sparsify":
            dense = f"sparsify export {quote(str(file))} --format dense --out FILE"
            raise SparsifyError(f"{file}: sparsify's own; make it dense with: {dense}")
        try:
            wanted = checksums(header)
        except ValueError:
            wanted = None
        if header.sealed is False or wanted is None:
            raise SparsifyError(f"{file}: altered: it does not agree with its checksums")
        for name in header.entries:
            if name in found:
                raise SparsifyError(f"{path}: {name} is in two of its files")
            found[name] = _Stored(file, header, name, wanted.get(name))
    return found


def _files(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    if os.path.isfile(path / _INDEX):
        return _shards(path / _INDEX)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    what = f"{len(files)} safetensors files and no {_INDEX}" if files else "no safetensors file"
    raise SparsifyError(f"{path}: a folder with {what}")


def _shards(index: Path) -> list[Path]:
    try:
        text: Any = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({*text["weight_map"].values()})
    except OSError as error:
        raise SparsifyError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SparsifyError(f"{index}: not an index of safetensors files (weight_map: name -> file)") from None
    for name in names:
        # An index may only name files beside itself, so that it cannot make others be read.
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\:\0]*\.safetensors", name):
            raise SparsifyError(f"{index}: {name!r:.60} is no safetensors file beside it")
    missing = [name for name in names if not os.path.isfile(index.parent / name)]
    if missing or not names:
        raise SparsifyError(f"{index}: {', '.join(missing[:3]) or 'no file'} of its {len(names)} files is missing")
    return [index.parent / name for name in names]
