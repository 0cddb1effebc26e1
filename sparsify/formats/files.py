"""Saving a model to one safetensors file; docs/format.md specifies the bytes. loading.py is the way back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import unknown
from ..surgery.cuts import Cuts
from ..surgery.wrappers import unwrap
from .atomic import atomic_write
from .container import container_chunks
from .inspection import FileSummary as FileSummary
from .inspection import TensorRow as TensorRow
from .inspection import inspect_file as inspect_file
from .loading import load as load
from .metadata import NOT_ARGUMENTS, Metadata, metadata_text
from .parts import dense_parts, encodings_of, sparse_parts
from .reading import FileState as FileState
from .reading import read_state as read_state
from .state import collect, text_of_cuts
from .tensors import CASTS

FORMATS = ("sparse", "dense")


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
    cuts: Cuts | None = None,
) -> int:
    """Write `model` to `path` and return the file's size in bytes; an old file is replaced only by a whole new one.

    `format="sparse"` stores each masked weight as its mask and its kept values: values under the mask are not stored.
    Effective weights and masks come back bit for bit. `format="dense"` stores the dense model's own names with removed
    entries as +0.0, which any safetensors reader loads.
    `spec` names the model ("timm:resnet18") and `arguments` what it was built with (`num_classes`), so that `load`
    needs only the file. `recipe` (a Recipe, or text), `seeds`, `metrics` and `extra` are kept in the metadata.
    A model that was cut remembers that; `cuts` tells it of one that does not: what is missing of a fresh model of the
    class, so that `load` can cut one alike.
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
        arguments={key: value for key, value in (arguments or {}).items() if key not in NOT_ARGUMENTS},
        recipe=recipe.to_yaml() if hasattr(recipe, "to_yaml") else recipe,
        seeds=seeds or {},
        metrics=metrics or {},
        cast=cast,
        writer=__version__,
        extra=extra or {},
    )
    inner = unwrap(model)
    state = collect(inner)
    cut = text_of_cuts(inner, cuts)
    if format == "dense" and state.raw:
        # The forward computes with something else than these values: only folding can put the zeros in.
        from ..surgery.fold import fold

        state = collect(fold(inner))
    if format == "dense":
        parts, text = dense_parts(state, cast), metadata_text(metadata, {}, {}, cut)
    else:
        encodings = encodings_of(state, cast)
        parts = sparse_parts(state, encodings, cast)
        text = metadata_text(metadata, encodings, state.aliases, cut, sorted(state.also))
    return atomic_write(path, container_chunks(parts, text))
