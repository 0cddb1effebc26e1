"""The stored tensors of a model's state, each with a function that returns its content when it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
from torch import Tensor

from ..codec.weight_encodings import ENCODINGS, Choice, Encoding, choose, with_zeros
from ..file.container import DTYPES, Part
from ..types import Array
from .dtypes import bits, dtype_name, from_bits, stored_bits, stored_dtype
from .model_state import ModelState

Source: TypeAlias = Callable[[], Array]


def encodings_of(state: ModelState, to: str | None) -> dict[str, Choice]:
    """Return the encoding of each masked weight, with its mask's bytes; `to` is the type to cast to, or None."""
    found = {}
    for name, mask in state.masks.items():
        tensor = state.tensors[name]
        width = DTYPES[stored_dtype(name, tensor, to)]
        found[name] = choose(name, _mask_bits(mask), tuple(tensor.shape), width, raw=name in state.raw)
    return found


def sparse_parts(state: ModelState, encodings: Mapping[str, Choice], to: str | None) -> list[Part]:
    """Return the tensors of the sparse format, in the model's order; each shared tensor once."""
    parts = []
    for name, tensor in state.tensors.items():
        dtype, shape = stored_dtype(name, tensor, to), tuple(tensor.shape)
        if name not in encodings:
            parts.append(Part(name, dtype, shape, partial(stored_bits, name, tensor, dtype)))
            continue
        chosen, mask = encodings[name], state.masks[name]
        encoding = ENCODINGS[chosen.encoding]
        for suffix, (wanted, sizes) in encoding.layout(shape).items():
            if suffix == encoding.suffix and chosen.stream is not None:
                parts.append(Part(name + suffix, wanted, chosen.stream.shape, chosen.stream.view))
            else:
                # A sum in torch would widen the mask to eight bytes an entry.
                known = tuple(int(np.count_nonzero(_mask_bits(mask))) if size is None else size for size in sizes)
                parts.append(
                    Part(name + suffix, dtype, known, partial(_stored_values, encoding, mask, name, tensor, dtype))
                )
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


def _stored_values(encoding: Encoding, mask: Tensor, name: str, tensor: Tensor, dtype: str) -> Array:
    content = encoding.content(bits(tensor), _mask_bits(mask))
    # The cast comes last: it is slow, and few values are left.
    return stored_bits(name, from_bits(content, dtype_name(tensor), content.shape), dtype)


def _effective_bits(values: Source, mask: Tensor) -> Array:
    return with_zeros(values(), _mask_bits(mask))
