"""Channel numbers, and which of them are the same channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

FIXED = 0  # the number of entries that never go


class Numbers:
    """Channel numbers and which of them were found to be the same."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._roots = np.zeros(1, dtype=np.int64)

    def fresh(self, size: int) -> Tensor:
        """Return `size` new numbers."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Note that the numbers in `a` and `b`, broadcast together, are the same channels."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        self._pairs.append((a.reshape(-1).numpy(), b.reshape(-1).numpy()))

    def fix(self, numbers: Tensor) -> None:
        """Note that these channels can not go."""
        self.tie(numbers, torch.zeros((), dtype=torch.int64))

    def roots(self) -> np.ndarray[Any, Any]:
        """Return for every number the lowest one it was tied to."""
        if self._pairs or len(self._roots) < self.count:
            roots = np.concatenate([self._roots, np.arange(len(self._roots), self.count)])
            if self._pairs:
                left = np.concatenate([pair[0] for pair in self._pairs])
                right = np.concatenate([pair[1] for pair in self._pairs])
                roots = lowest_connected(roots, left, right)
            self._roots, self._pairs = roots, []
        return self._roots


def lowest_connected(roots: np.ndarray[Any, Any], left: Any, right: Any) -> np.ndarray[Any, Any]:
    """Return `roots` (the lowest member of each one's set) after the sets of left[i] and right[i] were joined."""
    while True:
        a, b = roots[left], roots[right]
        different = a != b
        if not different.any():
            return roots
        left, right, a, b = left[different], right[different], a[different], b[different]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = roots[roots]
            if (shorter == roots).all():
                break
            roots = shorter
