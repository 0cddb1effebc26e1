"""What processes exchange for a selection over sharded weights: histograms and counts, never scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from ...processes.ranks import Group, gather


def sum_numbers(numbers: Any, group: Group, device: torch.device) -> Any:
    """Return the sum of a NumPy array of integers over all processes; without a group, itself."""
    if group is None:
        return numbers
    on_device = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)).to(device)
    distributed.all_reduce(on_device, group=group)
    return on_device.cpu().numpy()


def ties_here(equal: Sequence[int], ties: int, group: Group) -> list[int]:
    """Return how many of this process's tied entries of each tensor are removed, when the first `ties` of all are.

    `equal` is the number of tied entries of each tensor here. The order is by tensor, then by process.
    """
    of_each = np.array(gather(list(equal), group), dtype=np.int64)
    before = of_each.sum(0).cumsum() - of_each.sum(0) + of_each[: distributed.get_rank(group)].sum(0)
    return [int(number) for number in np.clip(ties - before, 0, np.array(equal))]
