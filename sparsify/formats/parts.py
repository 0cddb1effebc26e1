"""The stored tensors that a model's state becomes, each with a function that gives its content when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from torch import Tensor

from .container import DTYPES, Array, Part, Shape
from .encoding import ENCODINGS, Source, choose, with_zeros
from .state import ModelState
from .tensors import bits, stored_bits, stored_dtype


def encodings_of(state: ModelState, to: str | None) -> dict[str, tuple[str, Shape]]:
    """Return the encoding and the shape of each masked weight; `to` is the cast asked for."""
    found = {}
    for name, mask in state.masks.items():
        tensor = state.tensors[name]
        width = DTYPES[stored_dtype(name, tensor, to)]
        encoding = choose(tensor.numel(), _kept(mask), width, raw=name in state.raw)
        found[name] = (encoding, tuple(tensor.shape))
    return found


def sparse_parts(state: ModelState, encodings: Mapping[str, tuple[str, Shape]], to: str | None) -> list[Part]:
    """Return what the sparse format stores, in the model's order; each shared tensor once."""
    parts = []
    for name, tensor in state.tensors.items():
        dtype, shape = stored_dtype(name, tensor, to), tuple(tensor.shape)
        values = partial(stored_bits, name, tensor, dtype)
        if name not in encodings:
            parts.append(Part(name, dtype, shape, values))
            continue
        encoding = ENCODINGS[encodings[name][0]]
        mask, kept = partial(_mask_bits, state.masks[name]), _kept(state.masks[name])
        for suffix, (wanted, sizes) in encoding.layout(shape).items():
            known = tuple(kept if size is None else size for size in sizes)
            parts.append(Part(name + suffix, wanted or dtype, known, partial(encoding.encode[suffix], values, mask)))
    return parts


def dense_parts(state: ModelState, to: str | None) -> list[Part]:
    """Return the dense model's own tensors, removed entries +0.0; a shared tensor under each name, for strict loads."""
    parts = []
    for name, stored in {**{name: name for name in state.tensors}, **state.aliases}.items():
        tensor = state.tensors[stored]
        dtype = stored_dtype(name, tensor, to)
        values: Source = partial(stored_bits, name, tensor, dtype)
        if stored in state.masks:
            values = partial(_effective_bits, values, state.masks[stored])
        parts.append(Part(name, dtype, tuple(tensor.shape), values))
    return parts


def _mask_bits(mask: Tensor) -> Array:
    return bits(mask).view(np.bool_)


def _kept(mask: Tensor) -> int:
    # A sum in torch would widen the mask to eight bytes an entry.
    return int(np.count_nonzero(_mask_bits(mask)))


def _effective_bits(values: Source, mask: Tensor) -> Array:
    return with_zeros(values(), _mask_bits(mask))
