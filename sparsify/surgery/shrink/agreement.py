"""Which groups of channels two passes of one model agree about."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..channels import Channels


def same_groups(one: Channels, other: Channels) -> np.ndarray[Any, Any]:
    """Return for each group of `one` whether `other` has the very same group, and that dead if it is dead here."""
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
    agreed: np.ndarray[Any, Any] = same & (dead | ~one.dead.numpy())
    return agreed
