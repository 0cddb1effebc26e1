"""Union-find over channel numbers that stores the cause of every union."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

PINNED = 0  # the number of all entries that are never removed
_Array: TypeAlias = "np.ndarray[Any, Any]"


class UnionFind:
    """Sets of channel numbers. Numbers in the set of `PINNED` are never removed.

    Every union is stored with the current `cause`, so that `why_pinned` can name what keeps a channel.
    """

    def __init__(self) -> None:
        self.count = 1
        self.cause: Any = None
        self._pairs: list[tuple[_Array, _Array, Any]] = []
        self._joined = 0  # number of pairs already merged into the roots
        self._roots = np.zeros(1, dtype=np.int64)

    def new(self, size: int) -> Tensor:
        """Return `size` new numbers, each in its own set: int64 [size]."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def union(self, a: Tensor, b: Tensor) -> None:
        """Join the sets of the numbers in `a` and `b`, broadcast together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        self._pairs.append((a.reshape(-1).numpy(), b.reshape(-1).numpy(), self.cause))

    def pin(self, numbers: Tensor) -> None:
        """Join the sets of `numbers` with the set of `PINNED`."""
        self.union(numbers, torch.zeros((), dtype=torch.int64))

    def find(self) -> _Array:
        """Return the root of every number, the lowest member of its set: int64 [count]."""
        new = self._pairs[self._joined :]
        if new or len(self._roots) < self.count:
            roots = np.concatenate([self._roots, np.arange(len(self._roots), self.count)])
            if new:
                left, right = (np.concatenate([pair[side] for pair in new]) for side in (0, 1))
                roots = lowest_connected(roots, left, right)
            self._roots, self._joined = roots, len(self._pairs)
        return self._roots

    def why_pinned(self) -> tuple[_Array, list[Any]]:
        """Return the index of the union that first pinned each number (-1 if none), and the causes of all unions."""
        if not self._pairs:
            return np.full(self.count, -1), []
        left, right = (np.concatenate([pair[side] for pair in self._pairs]) for side in (0, 1))
        when = np.repeat(np.arange(len(self._pairs)), [len(pair[0]) for pair in self._pairs])
        free = (left != PINNED) & (right != PINNED)
        roots = lowest_connected(np.arange(self.count), left[free], right[free])
        fixing = (left == PINNED) != (right == PINNED)
        first = np.full(self.count, len(self._pairs))
        np.minimum.at(first, roots[np.maximum(left, right)[fixing]], when[fixing])
        found = first[roots]
        return np.where(found < len(self._pairs), found, -1), [pair[2] for pair in self._pairs]


def lowest_connected(roots: np.ndarray[Any, Any], left: Any, right: Any) -> np.ndarray[Any, Any]:
    """Return `roots` (the lowest member of each set) after joining the sets of left[i] and right[i] for all i."""
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
