"""The registry of export formats, one row each. Needs no torch: a row names its writer, which is imported when used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SparsifyError, nearest, unknown
from ..formats.io.atomic import check_writable
from ..formats.io.atomic_folder import check_folder
from ..formats.request import ExportRequest, ExportResult

_SPARSIFY = __name__.partition(".")[0]


class Format(NamedTuple):
    """One format: its writer, one sentence of help, and which options of `ExportRequest` it takes.

    `writer` is a function or the name of one, "export.pt2:write_pt2". It writes whole or not at all, and raises
    SparsifyError for a model that the format cannot hold. `needs` are the optional modules it imports, `install` the
    packages with them. `folder`: the path is a folder, and `ours` names the function that returns whether an older,
    non-empty one may be replaced. `trainable`: the result can be trained further. `suffix` is that of its files, "" for
    folders.
    """

    writer: str | Callable[[ExportRequest], ExportResult]
    help: str
    takes: frozenset[str] = frozenset()
    folder: bool = False
    needs: tuple[str, ...] = ()
    install: str = ""
    ours: str = ""
    trainable: bool = True
    suffix: str = ".safetensors"

    def write(self, request: ExportRequest) -> ExportResult:
        """Write a model and return the result."""
        written: ExportResult = (_named(self.writer) if isinstance(self.writer, str) else self.writer)(request)
        return written

    @property
    def may_replace(self) -> Callable[[Path], bool] | None:
        """The function that says whether an older folder that is not empty may be replaced, None where none may."""
        return _named(self.ours) if self.ours else None


def check_format(format: str, given: Iterable[str], *, where: str, spelled: Callable[[str], str] = str) -> Format:
    """Return the row of `format`; SparsifyError, one line, unless it is known and takes the options `given`.

    The packages it needs must be installed as well. `where` prefixes the line; `spelled` returns an option as the user
    writes it.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, where=where)
    row = FORMATS[format]
    for option in given:
        if option not in row.takes:
            others = ", ".join(name for name, other in FORMATS.items() if option in other.takes)
            raise SparsifyError(f"{where}: {format} takes no {spelled(option)} (those that do: {others})")
    missing = [name for name in row.needs if find_spec(name) is None]
    if missing:
        raise SparsifyError(f"{where}: {format} needs {' and '.join(missing)}: pip install {row.install}")
    return row


def check_place(row: Format, path: str | os.PathLike[str]) -> None:
    """Raise SparsifyError if a format could not be written to `path`; nothing is touched."""
    if row.folder:
        check_folder(path, row.may_replace)
        return
    check_writable(path)
    if row.suffix and Path(path).suffix.lower() not in ("", row.suffix) and _is_other_file(path, row.suffix):
        raise SparsifyError(f"cannot write {path}: it exists and is no {row.suffix[1:]} file; choose another name")


def _is_other_file(path: str | os.PathLike[str], suffix: str) -> bool:
    """Return whether a file exists at `path` that has content and does not start like a file of this suffix."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SparsifyError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    return bool(start) and not (suffix == ".safetensors" and start[8:] == b"{")


def format_of(path: str | os.PathLike[str], given: str | None, *, where: str) -> str:
    """Return the format for a path: `given`, else the first with the path's suffix, hub for a folder, else sparse.

    Raises SparsifyError, one line, if the path's suffix belongs to other formats than `given`, or, without one, nearly
    matches that of a format.
    """
    suffix = Path(path).suffix.lower()
    fitting = [name for name, row in FORMATS.items() if row.suffix == suffix] if suffix else []
    if given is None:
        folder = str(path).endswith(("/", os.sep)) or os.path.isdir(path)
        guess = None if fitting or folder else nearest(suffix, {row.suffix for row in FORMATS.values() if row.suffix})
        if guess:
            raise SparsifyError(
                f"{where}: --out {path}: no format writes {suffix}; did you mean '{guess}'? (--format names one)"
            )
        return fitting[0] if fitting else "hub" if folder else "sparse"
    if given in FORMATS and fitting and given not in fitting:
        kind = f"a {FORMATS[given].suffix} file" if FORMATS[given].suffix else "a folder"
        raise SparsifyError(
            f"{where}: --out {path} names a {suffix} file, and {given} is written to {kind} "
            f"(formats of {suffix}: {', '.join(fitting)})"
        )
    return given


def _named(name: str) -> Callable[..., Any]:
    """Return the function that a row names: "export.pt2:write_pt2"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"{_SPARSIFY}.{module}"), function)
    return found


_OWN = frozenset({"dtype", "cuts"})
_RUN = frozenset({"example_input", "batch_size"})
_PROGRAM = _RUN | {"dynamic_shapes"}

FORMATS: dict[str, Format] = {
    "sparse": Format("formats.model.write:write_sparse", "Masks and kept values in a small safetensors file.", _OWN),
    "engine": Format(
        "export.engine_file:write_engine",
        "The sparse file with the fastest strategy for this machine, for sparsify.compile.",
        _OWN | _RUN | {"threads"},
        trainable=False,
    ),
    "dense": Format(
        "formats.model.write:write_dense",
        "The dense model's own keys with zeros in safetensors, for any reader.",
        _OWN,
    ),
    "masks": Format(
        "formats.model.masks:write_masks",
        "The masks alone, for another checkpoint of the same model (convert --masks).",
    ),
    "hub": Format(
        "export.hub:write_hub",
        "A folder for the Hugging Face hub: the sparse file, config.json and a model card.",
        _OWN,
        folder=True,
        ours="export.hub:is_as_written",
        suffix="",
    ),
    "onnx": Format(
        "export.onnx_writer:write_onnx",
        "An ONNX graph, checked in ONNX Runtime.",
        _PROGRAM,
        needs=("onnx", "onnxscript"),
        install="onnx onnxscript onnxruntime",
        trainable=False,
        suffix=".onnx",
    ),
    "pt2": Format(
        "export.pt2:write_pt2",
        "A torch.export program, which PyTorch runs without the model's code.",
        _PROGRAM,
        trainable=False,
        suffix=".pt2",
    ),
    "compressed-tensors": Format(
        "export.compressed_tensors:write_compressed_tensors",
        "Bitmasks and kept values in a folder that compressed-tensors up to 0.14 reads.",
        frozenset({"dtype"}),
        folder=True,
        suffix="",
    ),
}
