"""Agreement of the channel groups found in two passes of one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..dataflow.liveness import Liveness
from ..recording.ops import Op

if TYPE_CHECKING:
    from .groups import Channels


def dead_by_group(live: Liveness, ops: Iterable[Op]) -> frozenset[Op]:
    """Return the grouped convolutions that lose more by whole dead groups than by positions dead in all groups."""
    found = []
    for op in ops:
        result, groups = op.results[0], op.args[-1]
        flags = live.alive(result)
        others = tuple(d for d in range(flags.ndim) if d != 1)
        alive = np.broadcast_to(flags.any(axis=others), result.shape[1:2]).reshape(groups, -1)
        whole, positions = ~alive.any(axis=1), ~alive.any(axis=0)
        if not whole.all() and whole.mean() > positions.mean():
            found.append(op)
    return frozenset(found)


def agreed(one: Channels, other: Channels, what: str) -> Channels:
    """Return the groups of `one` that `other`, a pass of another input, has too; a group is dead if dead in both.

    `what` names the other input in the barrier that reports how many groups are left out.
    """
    same = same_groups(replace(one, dead=torch.zeros_like(one.dead)), other)
    if same.all():
        return replace(one, dead=one.dead & torch.from_numpy(same_groups(one, other)))
    new = torch.from_numpy(np.append(np.where(same, np.cumsum(same) - 1, -1), -1))

    def left(labels: dict[int, Tensor]) -> dict[int, Tensor]:
        renumbered = {d: new[numbers] for d, numbers in labels.items()}
        return {d: numbers for d, numbers in renumbered.items() if bool((numbers >= 0).any())}

    labels = {name: found for name, sides in one.labels.items() if (found := left(sides))}
    barrier = f"{int((~same).sum())} units stay: for {what} the groups differ, or are not dead"
    return replace(
        one,
        labels=labels,
        produced={name: d for name, d in one.produced.items() if d in labels.get(name, {})},
        groups=int(same.sum()),
        dead=(one.dead & torch.from_numpy(same_groups(one, other)))[torch.from_numpy(same)],
        operations=tuple(replace(op, axes=tuple(new[axis] for axis in op.axes)) for op in one.operations),
        barriers=tuple(dict.fromkeys([*one.barriers, *other.barriers, barrier])),
    )


def same_groups(one: Channels, other: Channels) -> np.ndarray[Any, Any]:
    """Return bool [groups]: whether `other` has the same group, and, if the group is dead in `one`, has it dead too."""
    lowest = np.full(one.groups + 1, np.iinfo(np.int64).max)
    highest = np.full(one.groups + 1, -1, dtype=np.int64)
    counts, other_counts = np.zeros(one.groups + 1, dtype=np.int64), np.zeros(other.groups + 1, dtype=np.int64)
    for name in {**one.labels, **other.labels}:
        for d in {**one.labels.get(name, {}), **other.labels.get(name, {})}:
            here, there = (side.labels.get(name, {}).get(d) for side in (one, other))
            if there is not None:
                np.add.at(other_counts, there.numpy(), 1)
            if here is None:
                continue
            numbers = here.numpy()
            given = np.full(len(numbers), -1, dtype=np.int64) if there is None else there.numpy()
            np.add.at(counts, numbers, 1)
            np.minimum.at(lowest, numbers, given)
            np.maximum.at(highest, numbers, given)
    lowest, highest, counts = lowest[:-1], highest[:-1], counts[:-1]
    same = (lowest == highest) & (highest >= 0) & (counts == other_counts[highest])
    dead = np.append(other.dead.numpy(), False)[highest]
    found: np.ndarray[Any, Any] = same & (dead | ~one.dead.numpy())
    return found
