"""A model's output taken apart: its tensors and numbers in a flat list, and how they are put together again.

Containers are opened as torch's pytree knows them, and other objects (a language model's cache of keys and values) by
their attributes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# These hold what is no attribute of theirs.
_CLOSED = (Tensor, bool, int, float, complex, str, bytes, Mapping, list, tuple, Set)
_FIXED = (torch.dtype, torch.device, torch.layout, type, type(None), enum.Enum)  # the same at every call


@dataclass(frozen=True)
class Outline:
    """How an output is built round its leaves: `parts` has None for a leaf, else what is in its place."""

    spec: Any
    parts: tuple[_Fixed | _Object | None, ...]

    def filled(self, leaves: Sequence[Any]) -> Any:
        """Return the output with these leaves; objects in it are new ones."""
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


def outputs_apart(outputs: Any) -> tuple[list[Any], Outline]:
    """Return the leaves of an output, and its outline; what cannot be opened is a leaf."""
    given, spec = pytree.tree_flatten(outputs)
    leaves: list[Any] = []
    parts: list[_Fixed | _Object | None] = []
    for leaf in given:
        held = vars(leaf) if hasattr(leaf, "__dict__") and not callable(leaf) else None
        if isinstance(leaf, _FIXED):
            parts.append(_Fixed(leaf))
        elif held is not None and not isinstance(leaf, _CLOSED):
            inner, outline = outputs_apart(held)
            leaves += inner
            parts.append(_Object(type(leaf), outline))
        else:
            leaves.append(leaf)
            parts.append(None)
    return leaves, Outline(spec, tuple(parts))
