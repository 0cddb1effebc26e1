"""Liveness by group: which groups of channels are dead, and which groups zeros can make dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..analysis.group_ids import produced_dims
from ..analysis.reasons import spoiling
from ..recording.broadcast_forms import along, varying
from ..recording.ops import Op, Recording, Value
from .liveness import Liveness

MakeLiveness: TypeAlias = Callable[..., Liveness]  # for one recording and its rules; takes masks and `learning`


def alive_groups(live: Liveness, coupling: Coupling, ids: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return bool [count]: whether a group has a live entry (may be nonzero, reaches an output) in any activation."""
    alive = np.zeros(count + 1, dtype=bool)  # the last is for entries that stay
    carried = [np.zeros(0, dtype=np.int64)]
    for value, axes in coupling.axes.items():
        if value.constant is not None or not axes or value not in live.flags:
            continue
        flags = live.alive(value)
        alike = coupling.claimed.get(value, ())
        for axis in (axis for axis in axes if not any(axis is other for other in alike)):
            dims = varying(axis)
            others = tuple(d for d in range(flags.ndim) if d not in dims and flags.shape[d] > 1)
            reduced = flags.any(axis=others, keepdims=True) if others else flags
            numbers = axis.numpy()
            if numbers.shape != reduced.shape:
                numbers, reduced = np.broadcast_arrays(numbers, reduced)
            carried.append(numbers[reduced])
    alive[ids[np.concatenate(carried)]] = True
    return alive[:count]


def pruned_groups(
    liveness: MakeLiveness,
    coupling: Coupling,
    ids: np.ndarray[Any, Any],
    count: int,
    masks: Mapping[str, Tensor],
) -> tuple[np.ndarray[Any, Any], Liveness | None]:
    """Return which groups `masks` make dead, bool [count], and the liveness under them (None without masks)."""
    if not masks:
        return np.zeros(count, dtype=bool), None
    live = liveness(masks, learning=True)
    dead = ~alive_groups(live, coupling, ids, count)
    if dead.any():
        dead &= alive_groups(liveness(learning=True), coupling, ids, count)
    return dead, live


def killable_groups(
    recording: Recording,
    liveness: MakeLiveness,
    coupling: Coupling,
    ids: np.ndarray[Any, Any],
    count: int,
    labels: Mapping[str, Mapping[int, Tensor]],
    produced: Mapping[str, int],
) -> np.ndarray[Any, Any]:
    """Return bool [count]: whether zeros in the parameters that produce a group make it dead, whatever others learn.

    Each random half of the groups is zeroed while the other half stays: a group must be dead next to live neighbours.
    """
    killable = np.zeros(count, dtype=bool)
    halves = np.random.default_rng(0).permutation(count) % 2 == 0
    for half in (halves, ~halves):
        kept = {}
        for value in dict.fromkeys(recording.state.values()):
            name = value.names[0]
            if name in produced and produced[name] in labels.get(name, {}):
                numbers = labels[name][produced[name]].numpy()
                kept_numbers = torch.from_numpy((numbers < 0) | ~half[numbers])
                kept[name] = along(kept_numbers, produced[name], len(value.shape))
        live = liveness(kept, learning=True)
        note_failures(live, coupling)
        killable |= half & ~alive_groups(live, coupling, ids, count)
    return killable


def first_spoiling_ops(recording: Recording, liveness: MakeLiveness, coupling: Coupling) -> dict[int, Op]:
    """Return {root of a channel number: first operation that turns the channel's zeros into nonzero values}."""
    roots = coupling.numbers.find()
    produced = produced_dims(coupling)
    zeroed = (value for value in dict.fromkeys(recording.state.values()) if value.names[0] in produced)
    live = liveness({value.names[0]: torch.zeros([1] * len(value.shape), dtype=torch.bool) for value in zeroed})

    def carries(value: Value) -> set[int]:
        if value.constant is not None or value not in live.flags:
            return set()
        flags = live.alive(value)
        alike = coupling.claimed.get(value, ())
        axes = [axis for axis in coupling.axes.get(value, ()) if not any(axis is other for other in alike)]
        numbers = [np.broadcast_arrays(roots[axis.numpy()], flags) for axis in axes]
        return {number for found, alive in numbers for number in np.unique(found[alive]).tolist()}

    return spoiling(recording.ops, carries)


def note_failures(live: Liveness, coupling: Coupling) -> None:
    """Add a barrier for every operation whose rule failed."""
    for op, failure in live.failures.items():
        where = op.module or "the model"
        coupling.barriers[f"{where}: operation '{op.name}' does not fit its rule ({failure})"] = None
