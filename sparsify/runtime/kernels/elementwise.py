"""Elementwise kernels: activations, and sums, differences and products of two activations."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .activations import apply
from .loops import FAST, clear, move, share
from .opcodes import Binary
from .opcodes import Column as at
from .planes import ALIGNMENT

BLOCK = 1024  # floats that stay in the L1 cache from one pass to the next


@njit(**FAST)
def runs_of(op, low, high, each):
    """Return the number of contiguous runs with the pixels of planes low..high, and the first one's place and length.

    A run consists of whole vectors: it includes the padding between rows and after the last one. Planes without padding
    above form one run together, unless `each` plane is to be one.
    """
    size, first = op[at.OUT_PLANE], op[at.FIRST]
    if first == 0 and not each:
        return 1, low * size, (high - low) * size
    span = (op[at.HEIGHT] * op[at.ROW_STRIDE] + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return high - low, low * size + first, min(span, size - first)


# LLVM vectorises only if reads cannot alias earlier writes: so each pass works in place, on a copy.


@njit(**FAST)
def activation(op, buffers, scalars, part, parts):
    """Write a function of each pixel, in place or not."""
    low, high = share(op[at.CHANNELS], part, parts)
    count, begin, length = runs_of(op, low, high, False)
    parameter, factor = scalars[op[at.SCALARS]], scalars[op[at.SCALARS] + 1]
    for run in range(count):
        place = begin + run * op[at.OUT_PLANE]
        for block in range(place, place + length, BLOCK):
            floats = min(BLOCK, place + length - block)
            if op[at.OUT] != op[at.IN]:
                move(buffers, op[at.OUT] + block, 1, buffers, op[at.IN] + block, 1, floats)
            apply(op[at.FUNCTION], buffers, op[at.OUT] + block, floats, parameter, factor)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST, inline="always")
def _join(buffers, begin, other, count, how):
    """Replace `count` floats by their sums, differences or products with those at `other`."""
    first, second = np.uint64(begin), np.uint64(other)
    if how == Binary.SUM:
        for i in range(np.uint64(count)):
            buffers[first + i] += buffers[second + i]
    elif how == Binary.DIFFERENCE:
        for i in range(np.uint64(count)):
            buffers[first + i] -= buffers[second + i]
    else:
        for i in range(np.uint64(count)):
            buffers[first + i] *= buffers[second + i]


@njit(**FAST, inline="always")
def _scale(buffers, begin, factors, count):
    first = np.uint64(begin)
    for i in range(np.uint64(count)):
        buffers[first + i] *= factors[i]


@njit(**FAST, inline="always")
def _clamp(buffers, begin, count, clamp_min, clamp_max):
    first = np.uint64(begin)
    for i in range(np.uint64(count)):
        value = buffers[first + i]
        value = clamp_min if value < clamp_min else value
        buffers[first + i] = clamp_max if value > clamp_max else value


@njit(**FAST)
def binary(op, buffers, scalars, part, parts):
    """Write pixels, times a factor of their plane and image, combined with another buffer, clamped; in place or not.

    Factors and the other buffer are optional.
    """
    low, high = share(op[at.CHANNELS], part, parts)
    batch, out, other, scales = op[at.BATCH], op[at.OUT], op[at.RESIDUAL], op[at.FACTORS] >= 0
    count, begin, length = runs_of(op, low, high, scales)
    clamp_min, clamp_max = scalars[op[at.SCALARS]], scalars[op[at.SCALARS] + 1]
    clamps = clamp_min > -np.inf or clamp_max < np.inf
    size = ALIGNMENT * batch * max(1, BLOCK // (ALIGNMENT * batch)) if scales else BLOCK
    factors = np.empty(size if scales else 0, np.float32)
    for run in range(count):
        place = begin + run * op[at.OUT_PLANE]
        if scales:
            source = op[at.FACTORS] + (low + run) * op[at.FACTORS_PLANE]
            filled = min(size, length)
            move(factors, 0, 1, buffers, source, 1, min(batch, filled))
            there = batch
            while there < filled:
                move(factors, there, 1, factors, 0, 1, min(there, filled - there))
                there *= 2
        for block in range(place, place + length, size):
            floats = min(size, place + length - block)
            if out != op[at.IN]:
                move(buffers, out + block, 1, buffers, op[at.IN] + block, 1, floats)
            if scales:
                _scale(buffers, out + block, factors, floats)
            if other >= 0:
                _join(buffers, out + block, other + block, floats, op[at.FUNCTION])
            if clamps:
                _clamp(buffers, out + block, floats, clamp_min, clamp_max)
    clear(buffers, out, op, low, high)
