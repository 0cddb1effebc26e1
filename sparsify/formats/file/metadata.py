"""Typed metadata of a file: its model, and the tables of masked weights and aliases."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import SparsifyError
from ..codec.mask_codecs import MOST_ENTRIES_A_BYTE
from ..codec.weight_encodings import ENCODINGS, Choice
from ..types import Shape
from .container import Entry, Header, is_shape, read_header
from .cuts_text import StoredCuts, read_cuts

# A file gets the lowest version that has its features, so that older readers read what they can and refuse the rest:
# 2 added cuts, 3 more encodings.
VERSIONS = ("1", "2", "3")
_TEXTS = ("spec", "recipe", "cast", "writer")
_TABLES = ("arguments", "seeds", "metrics", "extra", "engine")
# A file may name its model, but never what else is read or downloaded.
NOT_ARGUMENTS = (
    "name",
    "model_name",
    "pretrained",
    "checkpoint",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)
# Those of torchvision, which are allowed if they are None.
FETCHING = ("weights", "weights_backbone", "pretrained_backbone")


@dataclass(frozen=True)
class Metadata:
    """A file's metadata.

    `format`: "sparse" or "dense" for files of sparsify, "plain" for a safetensors file of another writer. `spec` and
    `arguments` build the model ("timm:resnet18"); `recipe` is the merged recipe's YAML; `cast` is the type that
    floating values were cast to on request; `writer` the version of sparsify that wrote the file. `engine` is the
    strategy that was the fastest where the file was written (`tuning.file_record`).
    """

    format: str = "plain"
    spec: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    seeds: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    cast: str | None = None
    writer: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskedEntry:
    """A masked parameter in the file: its encoding, dtype and shape, and the stored tensors by suffix.

    `also`: it is not a weight, and sparsities do not count it.
    """

    encoding: str
    dtype: str
    shape: Shape
    parts: Mapping[str, Entry]
    also: bool = False


@dataclass(frozen=True)
class Contents:
    """A file's checked header: its metadata, and which stored tensors make up which tensors of the model.

    `plain`: names of the tensors stored as they are; `aliases`: other name -> the stored name; `cuts`: the cuts of a
    shrunk model.
    """

    header: Header
    metadata: Metadata
    masked: Mapping[str, MaskedEntry]
    plain: tuple[str, ...]
    aliases: Mapping[str, str]
    cuts: StoredCuts = StoredCuts()

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the model's tensors, aliases too."""
        found = {name: self.header.entries[name].shape for name in self.plain}
        found |= {name: entry.shape for name, entry in self.masked.items()}
        return found | {alias: found[name] for alias, name in self.aliases.items()}


def metadata_text(
    metadata: Metadata,
    masked: Mapping[str, Choice],
    aliases: Mapping[str, str],
    cuts: str = "",
    also: Collection[str] = (),
) -> dict[str, str]:
    """Return the metadata for the container, text by key.

    `masked`: the encoding of each masked parameter, `also`: those that are not weights; `cuts`: the cuts as text, ""
    for none.
    """
    # Other tools read the dense file, and some of them require "pt".
    text = {"format": "sparsify" if metadata.format == "sparse" else "pt", "version": _version(masked, cuts)}
    for key in _TEXTS:
        if getattr(metadata, key) is not None:
            text[key] = getattr(metadata, key)
    for key in _TABLES:
        if getattr(metadata, key):
            text[key] = _json(key, getattr(metadata, key))
    if metadata.format == "sparse":
        table: dict[str, Any] = {name: {"encoding": encoding, "shape": s} for name, (encoding, s, _) in masked.items()}
        for name in also:
            table[name]["also"] = True
        text["masked"] = _json("masked", table)
    if aliases:
        text["aliases"] = _json("aliases", aliases)
    if cuts:
        text["cuts"] = cuts
    return text


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Return the contents of a file's header, fully checked before any tensor is read.

    Raises SparsifyError, one line, for a file that is missing, truncated, altered, of a newer version or not
    safetensors.
    """
    header = read_header(path)
    text = header.metadata
    if text.get("format") != "sparsify" and ("header_crc32" not in text or "sparsify_checkpoint" in text):
        return Contents(header, Metadata(), {}, tuple(header.entries), {})
    if not header.sealed:
        raise SparsifyError(f"{os.fspath(path)}: altered: the header does not agree with its checksum")
    if text.get("version", VERSIONS[0]) not in VERSIONS:
        known = f"{', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}"
        raise SparsifyError(
            f"{os.fspath(path)}: format version {text['version']!r:.20}; this sparsify reads versions {known}"
        )
    try:
        return _contents(header)
    except (ValueError, RecursionError) as error:
        raise SparsifyError(f"{os.fspath(path)}: altered, or not a sparsify file: {error}") from error


def _contents(header: Header) -> Contents:
    text = header.metadata
    tables = {key: _table(text, key) for key in (*_TABLES, "masked", "aliases")}
    if "version" not in text or len(text.get("crc32", "").split()) != len(header.entries):
        raise ValueError("it has no version, or not one checksum for each tensor")
    masked = {name: _masked(header, name, value, int(text["version"])) for name, value in tables["masked"].items()}
    taken = [f"{name}{suffix}" for name, entry in masked.items() for suffix in entry.parts]
    used = set(taken)
    plain = tuple(name for name in header.entries if name not in used)
    known = {*masked, *plain}
    if len(taken) != len(used) or len(known) != len(masked) + len(plain):
        raise ValueError("a stored tensor belongs to two weights")
    for alias, name in tables["aliases"].items():
        if alias in known or not isinstance(name, str) or name not in known:
            raise ValueError(f"the alias {alias!r} does not lead to a stored tensor")
    given: dict[str, Any] = {key: text[key] for key in _TEXTS if key in text} | {key: tables[key] for key in _TABLES}
    metadata = Metadata(format="sparse" if text.get("format") == "sparsify" else "dense", **given)
    contents = Contents(header, metadata, masked, plain, tables["aliases"])
    return replace(contents, cuts=_cuts(text, contents.shapes)) if "cuts" in text else contents


def _version(masked: Mapping[str, Choice], cuts: str) -> str:
    needed = max((ENCODINGS[choice.encoding].since for choice in masked.values()), default=1)
    return str(max(needed, 2 if cuts else 1))


def _cuts(text: Mapping[str, str], shapes: Mapping[str, Shape]) -> StoredCuts:
    if text["version"] == VERSIONS[0]:
        raise ValueError("its model was cut, which version 1 does not know")
    cuts = read_cuts(text["cuts"])
    for name, shape in shapes.items():
        cuts.original(name, shape)
    missing = [name for name in cuts.added if name not in shapes]
    if missing:
        raise ValueError(f"its cuts add {missing[0]!r}, which is missing")
    return cuts


def _masked(header: Header, name: str, value: Any, version: int) -> MaskedEntry:
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    encoding = found.get("encoding")
    if not isinstance(encoding, str) or encoding not in ENCODINGS or not is_shape(found.get("shape")):
        raise ValueError(f"the masked weight {name!r} has no known encoding and shape")
    if ENCODINGS[encoding].since > version:
        raise ValueError(f"the encoding {encoding!r} of {name!r} is one that version {version} does not know")
    if not isinstance(found.get("also", False), bool):
        raise ValueError(f"the masked weight {name!r} has 'also' neither true nor false")
    shape = tuple(found["shape"])
    parts, dtype = {}, ""
    for suffix, (wanted, sizes) in ENCODINGS[encoding].layout(shape).items():
        entry = header.entries.get(name + suffix)
        if entry is None:
            raise ValueError(f"the tensor {name + suffix!r} is missing")
        fits = len(entry.shape) == len(sizes) and all(
            size in (None, got) for size, got in zip(sizes, entry.shape, strict=True)
        )
        if not fits or wanted not in ("", entry.dtype) or (not wanted and math.prod(entry.shape) > math.prod(shape)):
            raise ValueError(f"the tensor {name + suffix!r} does not fit a weight of shape {shape}")
        parts[suffix] = entry
        dtype = dtype if wanted else entry.dtype
    if math.prod(shape) > MOST_ENTRIES_A_BYTE * sum(entry.end - entry.begin for entry in parts.values()):
        raise ValueError(f"too little is stored for a weight of shape {shape}: {name!r}")
    return MaskedEntry(encoding, dtype, shape, parts, found.get("also", False))


def _table(text: Mapping[str, str], key: str) -> dict[str, Any]:
    value = json.loads(text.get(key, "{}"))
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} in it is not a JSON object")
    return value


def _json(key: str, value: Mapping[str, Any]) -> str:
    """Return a caller's value as JSON; NumPy and torch scalars become plain numbers."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=lambda scalar: scalar.item())
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SparsifyError(f"save: {key} must be plain JSON (text, finite numbers, lists): {error}") from error
