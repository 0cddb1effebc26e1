"""Saving a model to one safetensors file and loading it; docs/format.md specifies the bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SparsifyError, unknown
from ..surgery.masks import all_masked_weights
from .atomic import atomic_write
from .container import checksums, container_chunks, open_file, read_part
from .encoding import ENCODINGS
from .inspection import FileSummary as FileSummary
from .inspection import TensorRow as TensorRow
from .inspection import inspect_file as inspect_file
from .inspection import stored_names
from .metadata import Contents, Metadata, metadata_text, read_contents
from .parts import dense_parts, encodings_of, sparse_parts
from .state import adopt_dtypes, check_names, collect, put, unwrap
from .tensors import CASTS, from_bits

FORMATS = ("sparse", "dense")
# A file rebuilds the model it names, it never chooses what else is read or downloaded.
_NOT_ARGUMENTS = (
    "pretrained",
    "checkpoint",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)


class FileState(NamedTuple):
    """What a file holds: effective weights and all other tensors by name, masks by weight name, and the metadata.

    A shared tensor is listed under each of its names, its mask under the first. For a masked weight from which the
    forward computes another (weight standardisation), `state` holds the raw weight.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    metadata: Metadata


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    recipe: Any = None,
    seeds: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    format: str = "sparse",
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Write `model` to `path` and return the file's size in bytes; an old file is replaced only by a whole new one.

    `format="sparse"` stores each masked weight as its mask and its kept values: values under the mask are not stored.
    Effective weights and masks come back bit for bit. `format="dense"` stores the dense model's own names with removed
    entries as +0.0, which any safetensors reader loads.
    `spec` names the model ("timm:resnet18") and `arguments` what it was built with (`num_classes`), so that `load`
    needs only the file. `recipe` (a Recipe, or text), `seeds`, `metrics` and `extra` are kept in the metadata.
    `dtype` ("float16", "bfloat16", "float32", or torch's own) casts floating values, which rounds them.
    Raises SparsifyError for a state that no file can hold and for a path that cannot be written, RunError for a full
    disk.
    """
    from .. import __version__

    if format not in FORMATS:
        raise unknown("format", format, FORMATS, where="save")
    cast = None if dtype is None else str(dtype).removeprefix("torch.")
    if cast is not None and cast not in CASTS:
        raise unknown("dtype", cast, CASTS, where="save")
    metadata = Metadata(
        format=format,
        spec=spec,
        arguments={key: value for key, value in (arguments or {}).items() if key not in _NOT_ARGUMENTS},
        recipe=recipe.to_yaml() if hasattr(recipe, "to_yaml") else recipe,
        seeds=seeds or {},
        metrics=metrics or {},
        cast=cast,
        writer=__version__,
        extra=extra or {},
    )
    state = collect(unwrap(model))
    if format == "dense" and state.raw:
        # The forward computes with something else than these values: only folding can put the zeros in.
        from ..surgery.fold import fold

        state = collect(fold(unwrap(model)))
    if format == "dense":
        parts, text = dense_parts(state, cast), metadata_text(metadata, {}, {})
    else:
        encodings = encodings_of(state, cast)
        parts, text = sparse_parts(state, encodings, cast), metadata_text(metadata, encodings, state.aliases)
    return atomic_write(path, container_chunks(parts, text))


def load(path: str | os.PathLike[str], model: nn.Module | None = None, *, fold: bool = False) -> nn.Module:
    """Return the model with the tensors and masks of the file at `path`.

    Without `model` the file must name its model, which is built and returned in evaluation mode. A given `model` is
    loaded in place and keeps its dtypes and mode; a plain one is converted first, so that exactly the weights masked in
    the file carry masks, and one already converted keeps the masks it has (all ones where the file has none). Every
    tensor must be there in its shape, and nothing else. A file without masks, of this library or another, is a plain
    state dict.
    `fold=True` returns a plain model with the masks multiplied in: `model` itself if it is plain, a new one if it
    carries masks or computes its weights from those in the file.
    Raises SparsifyError, one line, for a file that is missing, truncated, altered or that does not fit; the model's
    tensors are then as they were.
    """
    (state, masks, metadata), contents = _read(path)
    target = model
    if target is None:
        target = _build(path, metadata)
    inner = unwrap(target)
    check_names(os.fspath(path), inner, state)
    if model is None and metadata.cast is None:
        adopt_dtypes(inner, state)
    masks |= {alias: masks[name] for alias, name in contents.aliases.items() if name in masks}
    if fold and not any(entry.encoding == "raw" for entry in contents.masked.values()):
        masks = {}  # the effective weights are all that a plain model needs
    if masks:
        _ensure_masked(path, inner, masks, contents)
    put(inner, state, masks)
    if model is None:
        target.eval()
    if fold and next(all_masked_weights(inner), None) is not None:
        from ..surgery.fold import fold as fold_model

        return fold_model(inner)
    return target


def read_state(path: str | os.PathLike[str]) -> FileState:
    """Return what the file at `path` holds, every checksum verified, without building a model.

    At most the dense tensors and one stored tensor are held at a time. Raises SparsifyError, one line, for a file
    that is missing, truncated, altered or not safetensors.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[FileState, Contents]:
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
                    values, mask = ENCODINGS[entry.encoding].decode(stored, math.prod(entry.shape))
                    masks[name] = from_bits(mask.view(np.uint8), "BOOL", entry.shape)
                    state[name] = from_bits(values, entry.dtype, entry.shape)
                else:
                    plain = contents.header.entries[name]
                    state[name] = from_bits(read(name, wanted.get(name)), plain.dtype, plain.shape)
            except ValueError as error:
                raise SparsifyError(f"{os.fspath(path)}: altered: {name!r}: {error}") from error
    state.update({alias: state[name] for alias, name in contents.aliases.items()})
    return FileState(state, masks, contents.metadata), contents


def _build(path: str | os.PathLike[str], metadata: Metadata) -> nn.Module:
    from ..models import build_model

    if metadata.spec is None:
        raise SparsifyError(f"{os.fspath(path)}: the file does not name its model; pass the model to load it into")
    foreign = [key for key in metadata.arguments if key in _NOT_ARGUMENTS]
    if foreign:
        raise SparsifyError(f"{os.fspath(path)}: the file's model arguments may not contain {', '.join(foreign)}")
    return build_model(metadata.spec, **metadata.arguments)


def _ensure_masked(
    path: str | os.PathLike[str], model: nn.Module, masks: Mapping[str, Tensor], contents: Contents
) -> None:
    """Convert a plain model so that the file's weights are masked; raise SparsifyError unless they then are."""
    skipped: Mapping[str, str] = {}
    if next(all_masked_weights(model), None) is None:
        from ..surgery.convert import convert

        skipped = convert(model, ignore=[name for name in _weights(model) if name not in masks]).skipped
    live = {weight.name for weight in all_masked_weights(model)}
    lost = [f"{name} ({skipped[name]})" if name in skipped else name for name in contents.masked if name not in live]
    if lost:
        raise SparsifyError(f"{os.fspath(path)}: the model carries no mask on {', '.join(lost)}, the file does")


def _weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters that could carry a mask."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [name for name, value in parameters if value.is_floating_point() and value.dim() > 1]
