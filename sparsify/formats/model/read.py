"""Reading a file's tensors and masks, checksums verified, without building a model."""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...errors import SparsifyError
from ..codec.weight_encodings import ENCODINGS
from ..file.container import checksums, open_file, read_part
from ..file.inspection import stored_names
from ..file.metadata import Contents, Metadata, read_contents
from .dtypes import from_bits


class FileState(NamedTuple):
    """The contents of a file: effective weights and all other tensors by name, masks by weight name, and the metadata.

    A shared tensor is listed under each of its names, its mask under the first. For a masked weight from which the
    forward computes another (weight standardisation), `state` holds the raw weight.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    metadata: Metadata


def read_state(path: str | os.PathLike[str]) -> FileState:
    """Return tensors, masks and metadata of the file at `path`, every checksum verified, without building a model.

    Memory holds at most the dense tensors and one stored tensor. Raises SparsifyError, one line, for a file that is
    missing, truncated, altered or not safetensors.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike[str]) -> tuple[FileState, Contents]:
    """As `read_state`; return the file's header too."""
    contents = read_contents(path)
    wanted = checksums(contents.header)
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    with open_file(path) as file:
        read = partial(read_part, file, contents.header)
        for name in stored_names(contents):
            try:
                if name in contents.masked:
                    entry = contents.masked[name]
                    stored = {suffix: read(name + suffix, wanted[name + suffix]) for suffix in entry.parts}
                    values, mask = ENCODINGS[entry.encoding].decode(stored, entry.shape)
                    masks[name] = from_bits(mask.view(np.uint8), "BOOL", entry.shape)
                    state[name] = from_bits(values, entry.dtype, entry.shape)
                else:
                    plain = contents.header.entries[name]
                    state[name] = from_bits(read(name, wanted.get(name)), plain.dtype, plain.shape)
            except ValueError as error:
                raise SparsifyError(f"{os.fspath(path)}: altered: {name!r}: {error}") from error
    state.update({alias: state[name] for alias, name in contents.aliases.items()})
    return FileState(state, masks, contents.metadata), contents
