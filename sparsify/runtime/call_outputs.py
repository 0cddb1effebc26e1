"""Flattening a model's output to a list of tensors and numbers, and rebuilding it.

Containers are flattened by torch's pytree, other objects (a language model's cache of keys and values) by their
attributes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# Objects whose state is not in their attributes.
_CLOSED = (Tensor, bool, int, float, complex, str, bytes, Mapping, list, tuple, Set)
_FIXED = (torch.dtype, torch.device, torch.layout, type, type(None), enum.Enum)  # the same at every call


@dataclass(frozen=True)
class Outline:
    """The structure of an output around its leaves: `parts` has None for a leaf, else a constant or an object."""

    spec: Any
    parts: tuple[_Fixed | _Object | None, ...]

    def filled(self, leaves: Sequence[Any]) -> Any:
        """Return the output with these leaves; objects in it are new instances."""
        return self._filled(iter(leaves))

    def _filled(self, leaves: Iterator[Any]) -> Any:
        values = [next(leaves) if part is None else part.filled(leaves) for part in self.parts]
        return pytree.tree_unflatten(values, self.spec)


@dataclass(frozen=True)
class _Fixed:
    value: Any

    def filled(self, leaves: Iterator[Any]) -> Any:
        return self.value


@dataclass(frozen=True)
class _Object:
    kind: type
    attributes: Outline

    def filled(self, leaves: Iterator[Any]) -> Any:
        made: Any = object.__new__(self.kind)
        vars(made).update(self.attributes._filled(leaves))
        return made


def flatten_outputs(outputs: Any) -> tuple[list[Any], Outline]:
    """Return the leaves of an output, and its outline; an object that cannot be flattened is a leaf."""
    given, spec = pytree.tree_flatten(outputs)
    leaves: list[Any] = []
    parts: list[_Fixed | _Object | None] = []
    for leaf in given:
        held = vars(leaf) if hasattr(leaf, "__dict__") and not callable(leaf) else None
        if isinstance(leaf, _FIXED):
            parts.append(_Fixed(leaf))
        elif held is not None and not isinstance(leaf, _CLOSED):
            inner, outline = flatten_outputs(held)
            leaves += inner
            parts.append(_Object(type(leaf), outline))
        else:
            leaves.append(leaf)
            parts.append(None)
    return leaves, Outline(spec, tuple(parts))
