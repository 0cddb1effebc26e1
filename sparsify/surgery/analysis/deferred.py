"""Decisions between ways to remove channels, deferred until all operations have been visited.

The channels of a split dimension follow one of its parts; a grouped convolution loses whole groups or the same
positions of every group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .union_find import PINNED, UnionFind, lowest_connected

Unions: TypeAlias = list[tuple[Tensor, Tensor]]  # pairs of numbers of one channel, broadcast together


@dataclass
class Deferred:
    """The open decisions: axes that vary along several dimensions, axes to join with them, and alternative unions."""

    joint: dict[bytes, tuple[Tensor, Any]] = field(default_factory=dict)
    met: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list)
    choices: list[tuple[tuple[Unions, ...], Any]] = field(default_factory=list)
    merged: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]] = field(default_factory=list)

    def add(self, axis: Tensor, cause: Any) -> None:
        """Add an axis that varies along several dimensions."""
        squeezed = axis.squeeze().contiguous()
        key = str(tuple(squeezed.shape)).encode() + squeezed.numpy().tobytes()
        self.joint.setdefault(key, (squeezed, cause))

    def meet(self, axis: Tensor, other: Tensor, cause: Any) -> None:
        """Add a pair to join: an axis, and another one along fewer dimensions, if the first one follows these."""
        self.met.append((axis, other, cause))

    def choose(self, alternatives: tuple[Unions, ...], cause: Any) -> None:
        """Add alternative unions; the first one that leaves a channel removable is made, else the first."""
        self.choices.append((alternatives, cause))

    def merge(self, one: Tensor, parts: list[tuple[Tensor, Tensor]], cause: Any) -> None:
        """Add that axis `one` stands for one of several merged axes: the first that leaves a channel removable.

        `parts` are the merged axes, (before, after) the movement.
        """
        stays = torch.zeros((), dtype=torch.int64)
        ways = [[(one, new), *((other, stays) for other, _ in parts if other is not old)] for old, new in parts]
        self.choose(tuple(ways), cause)
        self.merged.append((one, parts))


def resolve(numbers: UnionFind, deferred: Deferred, produced: list[Tensor]) -> list[Tensor]:
    """Make all open decisions and their unions; return the original axes of the merged ones in `produced`."""
    _resolve_joint(numbers, deferred)
    for alternatives, numbers.cause in deferred.choices:
        roots = numbers.find()
        for a, b in next(
            (alternative for alternative in alternatives if _leaves_any(roots, alternative)), alternatives[0]
        ):
            numbers.union(a, b)
    _resolve_joint(numbers, deferred)
    roots = numbers.find()
    found: list[Tensor] = []
    for one, parts in reversed(deferred.merged):
        if any(bool(torch.isin(one, axis).any()) for axis in (*produced, *found)):
            found += [old for old, new in parts if (roots[new.numpy()] == roots[one.numpy()]).all()]
    return found


def _resolve_joint(numbers: UnionFind, deferred: Deferred) -> None:
    """Decide for every split dimension which part its channels follow: the part that leaves the most channels."""
    changed = True
    while changed:
        roots = numbers.find()
        changed = False
        for axis, numbers.cause in deferred.joint.values():
            changed |= _follow_one(numbers, roots[axis.numpy()])
        for axis, other, numbers.cause in deferred.met if not changed else ():
            # Only once it is decided which dimensions the axes follow.
            roots = numbers.find()
            found = roots[axis.numpy()]
            follows = [d for d in range(found.ndim) if (found != found.take([0], axis=d)).any()]
            if all(other.shape[d] == 1 for d in follows):
                tied: Any = torch.zeros((), dtype=torch.int64)  # the other dimension keeps its size
            else:
                tied = torch.from_numpy(found)
            given = torch.from_numpy(roots[other.numpy()])
            if bool((given != tied).any()):
                numbers.union(given, tied)
                changed = True


def _follow_one(numbers: UnionFind, found: np.ndarray[Any, Any]) -> bool:
    """Join the entries of each slice along the dimension that an axis follows; return whether any sets were joined."""
    d = max(range(found.ndim), key=lambda d: (_channels(found, d), d))
    lowest = found.min(axis=tuple(i for i in range(found.ndim) if i != d), keepdims=True)
    apart = bool((lowest != found).any())
    if apart:
        numbers.union(torch.from_numpy(found), torch.from_numpy(lowest))
    return apart


def _channels(numbers: np.ndarray[Any, Any], dim: int) -> int:
    """Return the number of channels that stay removable if each slice along `dim` is one channel."""
    rows = np.moveaxis(numbers, dim, 0).reshape(numbers.shape[dim], -1)
    found, index = np.unique(rows, return_inverse=True)
    index = index.reshape(rows.shape) + len(rows)
    roots = np.arange(len(rows) + len(found))
    slices = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    roots = lowest_connected(roots, slices.reshape(-1), index.reshape(-1))
    fixed = {int(roots[len(rows)])} if len(found) and found[0] == PINNED else set()
    return len(set(roots[: len(rows)].tolist()) - fixed)


def _leaves_any(roots: np.ndarray[Any, Any], ties: Unions) -> bool:
    """Return whether any of the numbers in `ties` is still removable after the unions."""
    pairs = [torch.broadcast_tensors(a, b) for a, b in ties]  # type: ignore[no-untyped-call]
    left, right = (np.concatenate([roots[pair[side].reshape(-1).numpy()] for pair in pairs]) for side in (0, 1))
    found, index = np.unique(np.concatenate([[PINNED], left, right]), return_inverse=True)
    joined = lowest_connected(np.arange(len(found)), index[1 : len(left) + 1], index[len(left) + 1 :])
    return bool((joined != joined[index[0]]).any())
