"""Export to the folder that compressed-tensors reads: sparse-bitmask weights and a config.json. Does not import it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from ..errors import SparsifyError
from ..formats.file.container import Part, container_chunks
from ..formats.file.metadata import metadata_text
from ..formats.io.atomic import atomic_write
from ..formats.io.atomic_folder import atomic_folder
from ..formats.model.model_state import collect
from ..formats.model.stored_tensors import dense_parts
from ..formats.request import ExportRequest, ExportResult
from ..formats.types import Array, Shape
from ..quantities import count
from ..surgery.conversion.fold import fold
from ..surgery.mask_state.masks import kept_of, masked_weights

# The release with this layout; later ones dropped the sparse formats.
VERSION = "0.14.0.1"
SUFFIXES = (".shape", ".compressed", ".bitmask", ".row_offsets")


def write_compressed_tensors(request: ExportRequest) -> ExportResult:
    """Write the folder: each masked `L.weight` as `L.compressed`, `L.bitmask`, `L.shape`, the rest as it is.

    The format has no other names: masked weights of other names are stored dense, with their zeros, and noted.
    `L.row_offsets`, which the reader requires and does not use, is empty. Raises SparsifyError for tensors whose names
    the reader would take for parts of a weight.
    """
    parts, modules, left = _parts(request)
    text = metadata_text(request.metadata, {}, {})
    with atomic_folder(request.path) as folder:
        size = atomic_write(folder / "model.safetensors", container_chunks(parts, text))
        size += atomic_write(folder / "config.json", _config(request.model, modules).encode())
    notes = [f"{count(len(modules), 'weight')} in sparse-bitmask"]
    if left:
        notes.append(f"  stored dense, since the format knows no such names: {', '.join(left)}")
    return ExportResult(size, tuple(notes))


def _parts(request: ExportRequest) -> tuple[list[Part], list[str], list[str]]:
    """Return the tensors to store, the modules whose weights are compressed, and the masked weights stored dense."""
    state = collect(request.model)
    masked = (state.masks.keys() | {alias for alias, name in state.aliases.items() if name in state.masks}) - state.also
    if state.raw:
        # The forward computes its weights from these values: only folding can put the zeros in.
        state = collect(fold(request.model))
    parts: list[Part] = []
    modules, left = [], []
    for part in dense_parts(state, request.dtype):
        module, _, name = part.name.rpartition(".")
        if part.name.endswith(SUFFIXES):
            raise SparsifyError(f"save: compressed-tensors would take the tensor {part.name} for a part of a weight")
        if part.name in masked and name == "weight" and module and part.shape:
            modules.append(module)
            parts += _compressed(module, part)
            continue
        parts.append(part)
        if part.name in masked:
            left.append(part.name)
    return parts, modules, left


def _compressed(module: str, part: Part) -> list[Part]:
    kept = int(np.count_nonzero(part.content()))
    *rows, columns = part.shape
    return [
        Part(f"{module}.shape", "I64", (len(part.shape),), lambda: np.array(part.shape, "<i8").view("<u8")),
        Part(f"{module}.compressed", part.dtype, (kept,), partial(_kept, part.content)),
        Part(f"{module}.bitmask", "U8", (*rows, -(-columns // 8)), partial(_bitmask, part.content, part.shape)),
        Part(f"{module}.row_offsets", "I64", (0,), lambda: np.empty(0, "<u8")),
    ]


def _kept(content: Callable[[], Array]) -> Array:
    bits = content()
    kept: Array = bits[bits != 0]  # compared as bits, so that kept negative zeros stay
    return kept


def _bitmask(content: Callable[[], Array], shape: Shape) -> Array:
    return np.packbits((content() != 0).reshape(shape), axis=-1, bitorder="little").reshape(-1)


def _config(model: nn.Module, modules: list[str]) -> str:
    """Return config.json: the configuration of a transformers model, and the sparsity configuration."""
    own: Any = getattr(model, "config", None)
    config: dict[str, Any] = json.loads(own.to_json_string()) if hasattr(own, "to_json_string") else {}
    kept, size = kept_of(masked_weights(model).values())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "transform_config": {},
        "sparsity_config": {
            "format": "sparse-bitmask",
            "targets": modules,
            "ignore": [],
            "global_sparsity": (size - kept) / size if size else 0.0,
            "sparsity_structure": "unstructured",
            "registry_requires_subclass": False,
        },
    }
    return json.dumps(config, indent=2) + "\n"
