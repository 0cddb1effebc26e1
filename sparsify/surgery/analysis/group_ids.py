"""Group ids: one number per set of channels that can only be removed together, from the union-find of a coupling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..recording.broadcast_forms import varying
from ..recording.ops import Value
from .coupling import Coupling
from .union_find import PINNED


def group_ids(coupling: Coupling) -> tuple[np.ndarray[Any, Any], int]:
    """Return the group id of every channel number (int64, -1 = never removed), and the number of groups.

    A group has numbers on an activation and in a tensor of the model, and is not all of a dimension.
    """
    roots = coupling.numbers.find()
    on_activations = np.zeros(len(roots), dtype=bool)
    for value, axes in coupling.axes.items():
        if value.constant is None:
            for axis in axes:
                on_activations[roots[axis.numpy()].reshape(-1)] = True
    in_the_model = np.zeros(len(roots), dtype=bool)
    for first, end, *_ in coupling.ranges:
        in_the_model[roots[first:end]] = True
    groups = np.flatnonzero(on_activations & in_the_model)
    # A group that is all of a dimension stays, since nothing would be left of the dimension.
    whole = [roots[first] for first, end, *_ in coupling.ranges if (roots[first:end] == roots[first]).all()]
    groups = groups[~np.isin(groups, [PINNED, *whole])]
    ids = np.full(len(roots), -1, dtype=np.int64)
    ids[groups] = np.arange(len(groups))
    return ids[roots], len(groups)


def only(ids: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return `ids` with the `wanted` groups (bool [groups]) renumbered and -1 for all others."""
    if not len(wanted):
        return ids
    ids = np.where((ids >= 0) & wanted[ids], ids, -1)
    renumbered: np.ndarray[Any, Any] = np.where(ids >= 0, np.cumsum(wanted)[ids] - 1, -1)
    return renumbered


def channel_dims(coupling: Coupling) -> dict[Value, set[int]]:
    """Return the dimensions along which each Value holds channels that are not pinned."""
    free = coupling.numbers.find() != PINNED
    return {
        value: {d for axis in axes if free[axis.numpy()].any() for d in varying(axis)}
        for value, axes in coupling.axes.items()
    }


def labels_of(coupling: Coupling, ids: np.ndarray[Any, Any]) -> dict[str, dict[int, Tensor]]:
    """Return {tensor name: {dimension: group id per index, -1 = never removed}}, without dimensions that have none."""
    labels: dict[str, dict[int, Tensor]] = {}
    for first, end, value, d in coupling.ranges:
        numbers = ids[first:end]
        if (numbers >= 0).any():
            for name in value.names:
                labels.setdefault(name, {})[d] = torch.from_numpy(numbers.copy())
    return labels


def produced_dims(coupling: Coupling) -> dict[str, int]:
    """Return {parameter name: dimension of its channels} of the parameters whose zeros make channels dead."""
    marked = np.zeros(coupling.numbers.count, dtype=bool)
    for axis in coupling.produced:
        marked[axis.numpy().reshape(-1)] = True
    roots = coupling.numbers.find()
    read = np.zeros(len(roots), dtype=bool)
    for axis in coupling.by_reading:
        read[roots[axis.numpy().reshape(-1)]] = True
    found: dict[str, int] = {}
    for by_reading in (True, False):  # a parameter is masked along one dimension; the one that produces wins
        for first, end, value, d in coupling.ranges:
            makes = read[roots[first:end]].any() and d == 1 if by_reading else marked[first:end].any()
            if value.trainable and makes and (roots[first:end] != PINNED).any():
                found |= dict.fromkeys(value.names, d)
    return found
