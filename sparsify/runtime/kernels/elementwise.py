"""Kernels that work on each pixel by itself: functions, sums and products of planes with their like."""

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

BLOCK = 1024  # floats that stay in the first cache from one pass to the next


@njit(**FAST)
def stretches(step, low, high, each):
    """Return how many stretches hold the pixels of planes low..high, and the first one's place and length.

    A stretch is whole vectors: borders between rows, and what is beyond the last one. Planes without a border above are
    one stretch together, unless `each` plane is to be one.
    """
    size, first = step[at.OUT_PLANE], step[at.FIRST]
    if first == 0 and not each:
        return 1, low * size, (high - low) * size
    span = (step[at.HEIGHT] * step[at.ROW_STRIDE] + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return high - low, low * size + first, min(span, size - first)


# Vector code needs to know that what is read is not what was just written: so each pass works in place, on a copy.


@njit(**FAST)
def function(step, buffers, limits, part, parts):
    """Write a function of each pixel, which may be where the pixel is."""
    low, high = share(step[at.CHANNELS], part, parts)
    count, begin, length = stretches(step, low, high, False)
    parameter, factor = limits[step[at.SCALARS]], limits[step[at.SCALARS] + 1]
    for stretch in range(count):
        place = begin + stretch * step[at.OUT_PLANE]
        for block in range(place, place + length, BLOCK):
            floats = min(BLOCK, place + length - block)
            if step[at.OUT] != step[at.IN]:
                move(buffers, step[at.OUT] + block, 1, buffers, step[at.IN] + block, 1, floats)
            apply(step[at.FUNCTION], buffers, step[at.OUT] + block, floats, parameter, factor)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST, inline="always")
def _join(buffers, begin, other, count, how):
    """Replace `count` floats by their sums, differences or products with others."""
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
def _clamp(buffers, begin, count, least, most):
    first = np.uint64(begin)
    for i in range(np.uint64(count)):
        value = buffers[first + i]
        value = least if value < least else value
        buffers[first + i] = most if value > most else value


@njit(**FAST)
def combine(step, buffers, limits, part, parts):
    """Write pixels, times a factor of their plane and image, joined with those of another buffer, clamped.

    The output may be where the pixels are. Factors and the other buffer count if there are some.
    """
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, out, other, scales = step[at.BATCH], step[at.OUT], step[at.RESIDUAL], step[at.FACTORS] >= 0
    count, begin, length = stretches(step, low, high, scales)
    least, most = limits[step[at.SCALARS]], limits[step[at.SCALARS] + 1]
    clamps = least > -np.inf or most < np.inf
    size = ALIGNMENT * lanes * max(1, BLOCK // (ALIGNMENT * lanes)) if scales else BLOCK
    factors = np.empty(size if scales else 0, np.float32)
    for stretch in range(count):
        place = begin + stretch * step[at.OUT_PLANE]
        if scales:
            source = step[at.FACTORS] + (low + stretch) * step[at.FACTORS_PLANE]
            filled = min(size, length)
            move(factors, 0, 1, buffers, source, 1, min(lanes, filled))
            there = lanes
            while there < filled:
                move(factors, there, 1, factors, 0, 1, min(there, filled - there))
                there *= 2
        for block in range(place, place + length, size):
            floats = min(size, place + length - block)
            if out != step[at.IN]:
                move(buffers, out + block, 1, buffers, step[at.IN] + block, 1, floats)
            if scales:
                _scale(buffers, out + block, factors, floats)
            if other >= 0:
                _join(buffers, out + block, other + block, floats, step[at.FUNCTION])
            if clamps:
                _clamp(buffers, out + block, floats, least, most)
    clear(buffers, out, step, low, high)
