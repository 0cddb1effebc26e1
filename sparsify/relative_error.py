"""The relative error of outputs, which treats NaN and infinity the same way everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Attention masks write minus infinity as the most negative number of a dtype; such entries must not set the scale.
_AS_INFINITE = 1e30
_AS_OTHERS = {"g": "d", "G": "D"}  # long double, which has no tensor


def relative_error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest max |found - expected| / max |expected| of all pairs of tensors.

    Entries that are equal, or NaN in both, agree; if only one of the two is NaN or infinite, the error is infinite.
    max |expected| is taken over entries below 1e30. The error is also infinite for tensors of another shape or dtype,
    for integers or other values that are not equal or cannot be compared, and if `expected` is all zeros and `found` is
    not. Arrays of NumPy are compared as tensors, mappings by their keys in order and their values.
    """
    if len(found) != len(expected):
        return float("inf")
    return max((_of_pair(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _of_pair(found: Any, expected: Any) -> float:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return _of_others(found, expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(found, expected) else float("inf")
    a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (found, expected))
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    error = float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"), posinf=float("inf")).max())
    size = b.abs()
    largest = float(torch.where(size < _AS_INFINITE, size, 0.0).max())
    return error / largest if largest else float("inf")


def _of_others(found: Any, expected: Any) -> float:
    if type(found) is not type(expected):
        return float("inf")
    if isinstance(found, Mapping):
        return relative_error([*found.values()], [*expected.values()]) if [*found] == [*expected] else float("inf")
    if isinstance(found, np.ndarray) and found.dtype.kind in "biufc":
        if found.dtype != expected.dtype:
            return float("inf")
        return _of_pair(_tensor(found), _tensor(expected))
    same = found == expected
    return 0.0 if isinstance(same, bool | np.bool_) and same else float("inf")


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a copy of an array, which may be read-only, reversed, or of a byte order or precision without a tensor."""
    return torch.from_numpy(array.astype(_AS_OTHERS.get(array.dtype.char, array.dtype.newbyteorder("="))))
