"""Writing a model's state to one safetensors file, sparse or dense; docs/format.md specifies the bytes."""

from __future__ import annotations

from ...export.registry import Outgoing, Written
from ..file.container import container_chunks
from ..file.metadata import metadata_text
from ..io.atomic import atomic_write
from .model_state import collect, text_of_cuts
from .stored_tensors import dense_parts, encodings_of, sparse_parts


def write_sparse(outgoing: Outgoing) -> Written:
    """Write each masked weight as its mask and its kept values, everything else as it is."""
    state = collect(outgoing.model)
    encodings = encodings_of(state, outgoing.dtype)
    parts = sparse_parts(state, encodings, outgoing.dtype)
    cut = text_of_cuts(outgoing.model, outgoing.cuts)
    text = metadata_text(outgoing.metadata, encodings, state.aliases, cut, sorted(state.also))
    return Written(atomic_write(outgoing.path, container_chunks(parts, text)))


def write_dense(outgoing: Outgoing) -> Written:
    """Write the dense model's own tensors, removed entries as +0.0, a shared tensor under each of its names."""
    state = collect(outgoing.model)
    cut = text_of_cuts(outgoing.model, outgoing.cuts)
    if state.raw:
        # The forward computes with something else than these values: only folding can put the zeros in.
        from ...surgery.conversion.fold import fold

        state = collect(fold(outgoing.model))
    parts, text = dense_parts(state, outgoing.dtype), metadata_text(outgoing.metadata, {}, {}, cut)
    return Written(atomic_write(outgoing.path, container_chunks(parts, text)))
