"""Mask codec for n:m sparsity: n of each m neighbours along a dimension are kept (docs/format.md, `n:m`).

Each group is encoded as the number of its pattern among the C(m, n) possible, in ceil(log2 C(m, n)) bits: 3 for 2:4.
"""

from __future__ import annotations

import math

import numpy as np

from ..types import Array, Shape
from .bitpack import check_planes, from_planes, packed_size, to_planes

_MOST = 16


def encode_n_of_m(mask: Array, shape: Shape) -> Array | None:
    """Return an encoded n:m mask, None for any other mask; of several n:m the shortest."""
    kept = int(np.count_nonzero(mask))
    found = []
    for m in range(2, _MOST + 1):
        n, rest = divmod(kept * m, mask.size or 1)
        if rest or not 0 < n < m:
            continue
        for axis, extent in enumerate(shape):
            if extent % m == 0 and _all_keep(_grouped(mask, shape, m, axis), n):
                found.append((_digits(n, m) * mask.size // m, m, n, axis))
                break
    if not found:
        return None
    _, m, n, axis = min(found)
    groups = _grouped(mask, shape, m, axis)
    patterns = np.zeros((groups.shape[0], groups.shape[1], groups.shape[3]), np.uint16)
    for i in range(m):
        patterns |= groups[:, :, i].astype(np.uint16) << np.uint16(i)
    number = np.zeros(1 << m, np.uint16)
    known = _patterns(n, m)
    number[known] = np.arange(known.size)
    planes = to_planes(number[patterns].reshape(-1), _digits(n, m))
    return np.concatenate([np.array([n, m, axis], np.uint8), planes.reshape(-1)])


def decode_n_of_m(stream: Array, shape: Shape, kept: int | None) -> Array:
    """Return the mask that `encode_n_of_m` encoded. Raises ValueError, before it allocates, for any other bytes."""
    size = math.prod(shape)
    n, m, axis = (int(value) for value in stream[:3]) if stream.size >= 3 else (0, 0, 0)
    if not 0 < n < m <= _MOST or axis >= len(shape) or shape[axis] % m or kept is None or kept * m != n * size:
        raise ValueError(f"it is not {n}:{m} along dimension {axis}")
    number, digits = size // m, _digits(n, m)
    if stream.size != 3 + digits * packed_size((number,)):
        raise ValueError(f"its groups are not {number} in number")
    planes = stream[3:].reshape(digits, packed_size((number,)))
    check_planes(planes, number)
    codes, known = from_planes(planes, 0, number, np.uint16), _patterns(n, m)
    if number and int(codes.max()) >= known.size:
        raise ValueError(f"a group is none of the {known.size} there are for {n}:{m}")
    mask = np.empty(size, np.bool_)
    groups = _grouped(mask, shape, m, axis)
    patterns = known[codes].reshape(groups.shape[0], groups.shape[1], groups.shape[3])
    for i in range(m):
        groups[:, :, i] = patterns >> np.uint16(i) & np.uint16(1)
    return mask


def _grouped(mask: Array, shape: Shape, m: int, axis: int) -> Array:
    """Return a view of the mask, [before, groups along the dimension, m, after]."""
    return mask.reshape(math.prod(shape[:axis]), shape[axis] // m, m, math.prod(shape[axis + 1 :]))


def _all_keep(groups: Array, n: int) -> bool:
    # Most other masks already differ in their first groups.
    return all(bool((part.sum(axis=2, dtype=np.uint8) == n).all()) for part in (groups[:1, :64], groups))


def _digits(n: int, m: int) -> int:
    return (math.comb(m, n) - 1).bit_length()


def _patterns(n: int, m: int) -> Array:
    """Return the numbers of m bits of which n are set, ascending; bit i is entry i of a group."""
    numbers = np.arange(1 << m)
    return np.flatnonzero(sum(numbers >> i & 1 for i in range(m)) == n).astype(np.uint16)
