"""The safetensors container: header and tensors by name, with checksums (docs/format.md). Needs no torch."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SparsifyError, check_regular, text_in
from ..types import Array, Shape

# Bytes per element, by the container's name of the type. Elements are read as unsigned integers of that width, which
# preserves NaN payloads and negative zeros.
DTYPES: dict[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# A tensor takes some hundred bytes of a header, cuts at most 16 MB. The memory of a decoded header is many times its
# length, and grows with the number of brackets.
_MAX_HEADER = 40_000_000
_MOST_BRACKETS = 2_000_000
_MOST_TENSORS = 200_000
MAX_RANK = 64
_SEAL = re.compile(rb'"header_crc32":"[0-9a-f]{8}"')
_BLANK = b'"header_crc32":"00000000"'


@dataclass(frozen=True)
class Entry:
    """One stored tensor: type, shape and the offsets of its bytes in the data after the header."""

    dtype: str
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header. `sealed`: whether it agrees with its checksum, None if it has none."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    sealed: bool | None


@dataclass(frozen=True)
class Part:
    """One tensor to write; `content` returns its elements and is called twice: for the checksum, and for writing."""

    name: str
    dtype: str
    shape: Shape
    content: Callable[[], Array]

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return math.prod(self.shape) * DTYPES[self.dtype]


def container_chunks(parts: Sequence[Part], metadata: Mapping[str, str]) -> Iterator[bytes | Array]:
    """Yield the bytes of a safetensors file: the header, then the tensors, wide types first so that all are aligned.

    Added to the metadata are `crc32`, the tensors' checksums in the order of their sorted names, and `header_crc32`.
    At most one tensor's content is in memory at a time.
    """
    ordered = sorted(parts, key=lambda part: -DTYPES[part.dtype])
    offsets, position = {}, 0
    for part in ordered:
        offsets[part.name] = [position, position + part.size]
        position += part.size
    if len(offsets) < len(parts) or "__metadata__" in offsets:
        raise SparsifyError("save: two tensors of the model would be stored under one name, or one as '__metadata__'")
    checksums = [_checksum(part.content()) for part in sorted(parts, key=lambda part: part.name)]
    text: dict[str, Any] = {
        "__metadata__": {**metadata, "crc32": " ".join(checksums), "header_crc32": "00000000"},
        **{p.name: {"dtype": p.dtype, "shape": p.shape, "data_offsets": offsets[p.name]} for p in parts},
    }
    header = json.dumps(text, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    header = header.replace(_BLANK, b'"header_crc32":"%08x"' % zlib.crc32(header))
    yield len(header).to_bytes(8, "little") + header
    for part in ordered:
        yield part.content()


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of the safetensors file at `path`, with every offset and size checked against its length.

    Raises SparsifyError, one line, for a file that is missing, truncated, altered in its header or not safetensors.
    """
    with open_file(path) as file:
        length = os.fstat(file.fileno()).st_size
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > _MAX_HEADER:
            raise SparsifyError(f"{os.fspath(path)}: {_other_kind(path)}")
        # A file truncated within its header still starts like one.
        if size > length - 8:
            begins = file.read(1) in (b"{", b"")
            raise SparsifyError(f"{os.fspath(path)}: {'truncated' if begins else _other_kind(path)}")
        raw = file.read(size)
    if raw.count(b'"data_offsets"') > _MOST_TENSORS or raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS:
        raise SparsifyError(f"{os.fspath(path)}: its header is no model's: more than {_MOST_TENSORS:,} tensors")
    try:
        text = json.loads(raw.decode(), object_pairs_hook=_no_repeats)
        entries, metadata = _parse(text)
    except (ValueError, RecursionError) as error:
        raise SparsifyError(f"{os.fspath(path)}: not a safetensors file, or altered: {error}") from error
    end = max((entry.end for entry in entries.values()), default=0)
    if end != length - 8 - size:
        what = "truncated" if end > length - 8 - size else "altered"
        raise SparsifyError(f"{os.fspath(path)}: {what}: {end} bytes of data announced, {length - 8 - size} present")
    sealed = None
    if "header_crc32" in metadata:
        blank, found = _SEAL.subn(_BLANK, raw)
        sealed = found == 1 and f"{zlib.crc32(blank):08x}" == metadata["header_crc32"]
    return Header(entries, metadata, 8 + size, sealed)


def _other_kind(path: str | os.PathLike[str]) -> str:
    """Return that a file is not safetensors, and what to do with one of the kind that its name says."""
    if text := text_in(Path(path)):
        return f"not a safetensors file, but {text}"
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".bin", ".ckpt", ".pt", ".pth"):
        name = shlex.quote(os.fspath(path))
        return f"not a safetensors file; if torch saved it: sparsify convert {name} --model SPEC --out FILE.safetensors"
    exported = suffix in (".onnx", ".pt2")
    return f"not a safetensors file{'; take the run or the file that it was exported from' if exported else ''}"


def read_part(file: BufferedReader, header: Header, name: str, checksum: str | None) -> Array:
    """Return a stored tensor's elements, flat, as unsigned integers of their width.

    Raises SparsifyError if they are cut short or do not agree with `checksum` (None: there is none to compare with).
    """
    entry = header.entries[name]
    content = np.empty(entry.end - entry.begin, dtype=np.uint8)
    file.seek(header.data_start + entry.begin)
    if content.size and file.readinto(content.data) != content.size:
        raise SparsifyError(f"{file.name}: truncated while it was read")
    if checksum is not None and _checksum(content) != checksum:
        raise SparsifyError(f"{file.name}: altered: the tensor {name!r} does not agree with its checksum")
    return content.view(f"<u{DTYPES[entry.dtype]}")


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Return the file opened for reading bytes. Raises SparsifyError if it cannot be opened."""
    try:
        check_regular(path)
        return Path(path).open("rb")
    except OSError as error:
        raise SparsifyError(f"cannot read {os.fspath(path)}: {error.strerror}") from error


def checksums(header: Header) -> dict[str, str]:
    """Return the tensors' checksums by name, eight hexadecimal digits each; empty where the file has none."""
    values = header.metadata.get("crc32", "").split()
    return dict(zip(sorted(header.entries), values, strict=True)) if values else {}


def _checksum(content: Array) -> str:
    return f"{zlib.crc32(content.data):08x}"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _parse(text: Any) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return entries and metadata of a decoded header; ValueError for an invalid one."""
    if not isinstance(text, dict):
        raise ValueError("its header is not a JSON object")
    metadata = text.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    entries = {name: _entry(name, value) for name, value in text.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(f"tensor {name!r} starts at {entry.begin}, the one before ends at {position}")
        position = entry.end
    return entries, metadata


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r:.40}")
    if not is_shape(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has no valid shape and offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype]:
        raise ValueError(f"tensor {name!r} takes {end - begin} bytes, its shape asks for another number")
    return Entry(dtype, tuple(shape), begin, end)


def is_shape(value: Any) -> bool:
    """Return whether a decoded JSON value is a list of sizes that PyTorch can hold."""
    return _are_sizes(value) and len(value) <= MAX_RANK and math.prod(size or 1 for size in value) < 2**60


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)
