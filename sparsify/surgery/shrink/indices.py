"""Index algebra of cuts: check indices against a tensor, remove them, compose them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ...errors import SparsifyError
from ...quantities import sizes

Axes: TypeAlias = Mapping[int, tuple[int, ...]]  # dimension -> indices removed, ascending


def check_axes(where: str, name: str, tensor: Tensor, axes: Axes) -> None:
    """Raise SparsifyError unless the indices exist in the tensor and leave something of every dimension."""
    if is_lazy(tensor):
        raise SparsifyError(f"{where}: {name} has no shape yet (lazy module)")
    shape = sizes(tensor.shape)
    for dimension, indices in axes.items():
        if not 0 <= dimension < tensor.dim():
            raise SparsifyError(f"{where}: {name} ({shape}) has no dimension {dimension}")
        size = tensor.shape[dimension]
        if indices[0] < 0 or indices[-1] >= size:
            wrong = indices[0] if indices[0] < 0 else indices[-1]
            raise SparsifyError(f"{where}: {name} ({shape}) has no index {wrong} in dimension {dimension}")
        if len(indices) == size:
            raise SparsifyError(f"{where}: {name} ({shape}): nothing would be left of dimension {dimension}")


def without(tensor: Tensor, axes: Axes) -> Tensor:
    """Return a detached copy of `tensor` without the removed indices, in the same memory format."""
    # Select in memory order, to keep channels_last.
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dimension: -strides[dimension])
    left = tensor.detach().permute(order)
    for dimension, indices in axes.items():
        keep = torch.from_numpy(np.delete(np.arange(tensor.shape[dimension]), indices))
        left = left.index_select(order.index(dimension), keep.to(tensor.device))
    return left.contiguous().permute([order.index(dimension) for dimension in range(tensor.dim())])


def one_after_another(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Return the indices removed by `first`, then by `second` from what is left; all ascending."""
    # Index i of what is left was i + k before, where k counts the removed indices r_0 < r_1 < ... before it: those
    # with r_j - j <= i.
    shifts = [position - rank for rank, position in enumerate(first)]
    return tuple(sorted([*first, *(position + bisect_right(shifts, position) for position in second)]))


def what_follows(first: Sequence[int], both: Sequence[int]) -> tuple[int, ...]:
    """Return the indices, into what `first` left, whose removal completes `both`; all ascending."""
    removed = set(first)
    return tuple(position - bisect_left(first, position) for position in both if position not in removed)
