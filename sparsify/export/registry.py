"""The ways out: a format's name -> what writes it, one row each. Needs no torch until a model is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SparsifyError, unknown
from ..formats.file.metadata import Metadata, metadata_text
from ..formats.io.atomic_folder import Ours, check_folder, nothing_is_ours

if TYPE_CHECKING:
    from torch import nn

    from ..surgery.shrink.cuts import Cuts


@dataclass(frozen=True)
class Outgoing:
    """A model on its way out: unwrapped, with its metadata and the options its format takes (None: not given).

    `dtype` names the type that floating values are cast to; `example_input` (a tensor, a tuple, a dict or
    `sparsify.Inputs`) is what an exporter runs the model on; `dynamic_shapes` names the dimensions that may vary, the
    batch unless given, which `batch_size` fixes. `threads` are those that the engine is tuned for.
    """

    model: nn.Module
    path: str | os.PathLike[str]
    metadata: Metadata
    dtype: str | None = None
    example_input: Any = None
    batch_size: int | None = None
    dynamic_shapes: Any = None
    cuts: Cuts | None = None
    threads: int | None = None


class Written(NamedTuple):
    """What a way out wrote: bytes on the disk, and what a user should know of it beside that, a line each."""

    size: int
    notes: tuple[str, ...] = ()


class Way(NamedTuple):
    """One way out: its writer, one sentence of help, and which options of `Outgoing` it takes.

    The writer writes whole or not at all, and raises SparsifyError for a model that the format cannot hold. `needs`
    are the modules it imports beside what sparsify depends on, `install` what to install for them; `folder` tells that
    the path is a folder's, and `ours` which older one may be replaced, beside an empty one. `trainable` tells whether
    what is written may be trained on.
    """

    write: Callable[[Outgoing], Written]
    help: str
    takes: frozenset[str] = frozenset()
    folder: bool = False
    needs: tuple[str, ...] = ()
    install: str = ""
    ours: Ours = nothing_is_ours
    trainable: bool = True


def check_way(format: str, given: Iterable[str], *, where: str, spelled: Callable[[str], str] = str) -> Way:
    """Return the way out called `format`; SparsifyError, one line, unless it is known and takes the options `given`.

    The packages it needs must be installed as well. `where` begins the line, `spelled` writes an option as the user
    would.
    """
    from importlib.util import find_spec

    if format not in WAYS:
        raise unknown("format", format, WAYS, where=where)
    way = WAYS[format]
    for option in given:
        if option not in way.takes:
            others = ", ".join(name for name, other in WAYS.items() if option in other.takes)
            raise SparsifyError(f"{where}: {format} takes no {spelled(option)} (those that do: {others})")
    missing = [name for name in way.needs if find_spec(name) is None]
    if missing:
        raise SparsifyError(f"{where}: {format} needs {' and '.join(missing)}: pip install {way.install}")
    return way


def check_place(way: Way, path: str | os.PathLike[str]) -> None:
    """Raise SparsifyError if it is plain already that `way` cannot write `path`; nothing is touched."""
    from ..formats.io.atomic import check_writable

    if way.folder:
        check_folder(path, way.ours)
    else:
        check_writable(path)


def about_text(metadata: Metadata) -> dict[str, str]:
    """Return the metadata as text by key (`sparsify.spec`, ...), for formats that have a place for some."""
    text = metadata_text(metadata, {}, {})
    return {f"sparsify.{key}": value for key, value in text.items() if key not in ("format", "version")}


def _sparse(outgoing: Outgoing) -> Written:
    from ..formats.model.write import write_sparse

    return write_sparse(outgoing)


def _engine(outgoing: Outgoing) -> Written:
    from .engine_file import write_engine

    return write_engine(outgoing)


def _dense(outgoing: Outgoing) -> Written:
    from ..formats.model.write import write_dense

    return write_dense(outgoing)


def _onnx(outgoing: Outgoing) -> Written:
    from .onnx_writer import write_onnx

    return write_onnx(outgoing)


def _pt2(outgoing: Outgoing) -> Written:
    from .pt2 import write_pt2

    return write_pt2(outgoing)


def _compressed_tensors(outgoing: Outgoing) -> Written:
    from .compressed_tensors import write_compressed_tensors

    return write_compressed_tensors(outgoing)


def _hub(outgoing: Outgoing) -> Written:
    from .hub import write_hub

    return write_hub(outgoing)


def _is_of_hub(folder: Path) -> bool:
    from .hub import is_as_written

    return is_as_written(folder)


def _masks(outgoing: Outgoing) -> Written:
    from ..formats.model.masks import write_masks

    return write_masks(outgoing)


_OWN = frozenset({"dtype", "cuts"})
_RUN = frozenset({"example_input", "batch_size"})
_PROGRAM = _RUN | {"dynamic_shapes"}

WAYS: dict[str, Way] = {
    "sparse": Way(_sparse, "Masks and kept values in a small safetensors file.", _OWN),
    "engine": Way(
        _engine,
        "The sparse file with the way of running it that is the fastest here, for sparsify.compile.",
        _OWN | _RUN | {"threads"},
        trainable=False,
    ),
    "dense": Way(_dense, "The dense model's own keys with zeros in safetensors, for any reader.", _OWN),
    "masks": Way(_masks, "The masks alone, for another checkpoint of the same model (convert --masks)."),
    "hub": Way(
        _hub,
        "A folder for the Hugging Face hub: the sparse file, config.json and a model card.",
        _OWN,
        folder=True,
        ours=_is_of_hub,
    ),
    "onnx": Way(
        _onnx,
        "An ONNX graph, checked in ONNX Runtime.",
        _PROGRAM,
        needs=("onnx", "onnxscript"),
        install="onnx onnxscript onnxruntime",
        trainable=False,
    ),
    "pt2": Way(_pt2, "A torch.export program, which PyTorch runs without the model's code.", _PROGRAM, trainable=False),
    "compressed-tensors": Way(
        _compressed_tensors,
        "Bitmasks and kept values in a folder that this library, up to 0.14, reads.",
        frozenset({"dtype"}),
        folder=True,
    ),
}
