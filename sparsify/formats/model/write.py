"""Writing a model's state to one safetensors file, sparse or dense; docs/format.md specifies the bytes."""

from __future__ import annotations

from ...surgery.conversion.fold import fold
from ..file.container import container_chunks
from ..file.metadata import metadata_text
from ..io.atomic import atomic_write
from ..request import ExportRequest, ExportResult
from .model_state import collect, text_of_cuts
from .stored_tensors import dense_parts, encodings_of, sparse_parts


def write_sparse(request: ExportRequest) -> ExportResult:
    """Write each masked weight as its mask and its kept values, everything else as it is."""
    state = collect(request.model)
    encodings = encodings_of(state, request.dtype)
    parts = sparse_parts(state, encodings, request.dtype)
    cut = text_of_cuts(request.model, request.cuts)
    text = metadata_text(request.metadata, encodings, state.aliases, cut, sorted(state.also))
    return ExportResult(atomic_write(request.path, container_chunks(parts, text)))


def write_dense(request: ExportRequest) -> ExportResult:
    """Write the dense model's own tensors, removed entries as +0.0, a shared tensor under each of its names."""
    state = collect(request.model)
    cut = text_of_cuts(request.model, request.cuts)
    if state.raw:
        # The forward computes its weights from these values: only folding can put the zeros in.
        state = collect(fold(request.model))
    parts, text = dense_parts(state, request.dtype), metadata_text(request.metadata, {}, {}, cut)
    return ExportResult(atomic_write(request.path, container_chunks(parts, text)))
