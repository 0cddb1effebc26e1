"""Mutations of model files, drawn from bytes: of streams, values, and the header's shapes, offsets and encodings."""

from __future__ import annotations

import json
import zlib
from typing import Any

from sparsify.formats.codec.weight_encodings import ENCODINGS

SIZES = (0, 1, 2, 7, 8, 9, 31, 255, 256, 2**20, 2**31, 2**40, 2**59, 2**63, -1)


class Bytes:
    """Random choices drawn from bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def number(self, below: int) -> int:
        """Return a number from 0 to below - 1."""
        chunk = self.data[self.position : self.position + 4]
        self.position += 4
        return int.from_bytes(chunk, "little") % max(1, below)

    def one_of(self, choices: Any) -> Any:
        """Return one of the choices."""
        return choices[self.number(len(choices))]


def mutated(whole: bytes, draw: Bytes) -> tuple[bytes, bool]:
    """Return a mutation of a file, and whether its checksums match."""
    start = 8 + int.from_bytes(whole[:8], "little")
    if draw.number(2):
        content = bytearray(whole)
        for _ in range(1 + draw.number(3)):
            position = draw.number(len(content)) if draw.number(2) else draw.number(start)
            content[position] = draw.number(256)
        return bytes(content[: len(content) - draw.one_of((0, 0, 0, 1, 8, 100, len(content) // 2))]), False
    header, data = json.loads(whole[8:start]), bytearray(whole[start:])
    for _ in range(1 + draw.number(3)):
        draw.one_of((_change_data, _change_data, _change_shape, _change_entry))(header, data, draw)
    if draw.number(8) == 0:
        _change_text(header, draw)
    return sealed(header, bytes(data)), True


def _change_data(header: dict[str, Any], data: bytearray, draw: Bytes) -> None:
    entry = header[draw.one_of([name for name in header if name.endswith((".mask", ".gaps", ".groups", ".units"))])]
    begin, end = _range(entry)
    if end > begin and data:
        data[min(begin + draw.number(end - begin), len(data) - 1)] = draw.number(256)


def _change_shape(header: dict[str, Any], data: bytearray, draw: Bytes) -> None:
    key = "masked" if "masked" in header["__metadata__"] else "masks"  # of a model, or of masks alone
    masked = json.loads(header["__metadata__"][key])
    entry = masked[draw.one_of(list(masked))]
    if draw.number(4) == 0:
        entry["encoding"] = draw.one_of([*ENCODINGS, "rice", None])
    elif entry["shape"] and draw.number(4):
        entry["shape"][draw.number(len(entry["shape"]))] = draw.one_of((*SIZES, draw.number(100)))
    else:
        entry["shape"] = [draw.one_of(SIZES) for _ in range(draw.number(4))]
    header["__metadata__"][key] = json.dumps(masked)


def _change_entry(header: dict[str, Any], data: bytearray, draw: Bytes) -> None:
    """Lengthen or shorten a stored tensor, moving all that follow, or write nonsense into its header entry."""
    name = draw.one_of([name for name in header if name != "__metadata__"])
    if draw.number(3) == 0:
        header[name][draw.one_of(("dtype", "shape", "data_offsets"))] = draw.one_of(("U8", [3], [0, 8], None, "F64"))
        return
    begin, end = _range(header[name])
    size = draw.one_of((0, 1, max(0, end - begin - 1), end - begin + 1, end - begin + 8))
    data[begin:end] = (data[begin:end] + bytes(draw.number(256) for _ in range(8)))[:size]
    for entry in header.values():
        if "data_offsets" in entry and _range(entry)[0] >= end:
            entry["data_offsets"] = [offset + begin + size - end for offset in _range(entry)]
    header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}


def _change_text(header: dict[str, Any], draw: Bytes) -> None:
    key = draw.one_of(("version", "masked", "masks", "dense", "aliases", "cuts", "arguments", "format"))
    header["__metadata__"][key] = draw.one_of(
        ("1", "2", "3", "4", "{}", "[]", '{"a":"0.weight"}', '{"removed":[]}', "{")
    )


def _range(entry: dict[str, Any]) -> list[int]:
    offsets = entry["data_offsets"]
    return offsets if isinstance(offsets, list) and len(offsets) == 2 else [0, 0]


def sealed(header: dict[str, Any], data: bytes) -> bytes:
    """Return a file of that header and data with matching checksums."""
    ranges = {name: _range(entry) for name, entry in header.items() if name != "__metadata__"}
    sums = [f"{zlib.crc32(data[slice(*ranges[name])]):08x}" for name in sorted(ranges)]
    header["__metadata__"] |= {"crc32": " ".join(sums), "header_crc32": "00000000"}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.replace(b'"header_crc32":"00000000"', b'"header_crc32":"%08x"' % zlib.crc32(text))
    return len(text).to_bytes(8, "little") + text + data
