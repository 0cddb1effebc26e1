"""The layer norm kernel: over the channels of each pixel."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .loops import FAST, fill, share
from .opcodes import Column as at

BLOCK = 64  # floats of each plane that are processed together


@njit(**FAST)
def layer_norm(op, buffers, values, indptr, biases, scalars, part, parts):
    """Write pixels with mean 0 and variance 1 over all channels, times each channel's weight, plus its bias.

    Not in place. Threads share the pixels.
    """
    channels, size, first = op[at.CHANNELS], op[at.OUT_PLANE], op[at.FIRST]
    span = op[at.HEIGHT] * op[at.ROW_STRIDE]
    low, high = share((span + BLOCK - 1) // BLOCK, part, parts)
    source, out, eps = op[at.IN] - first, op[at.OUT], scalars[op[at.SCALARS]]
    means, scales = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    rows = indptr[op[at.INDPTR]] + op[at.VALUES]
    for block in range(first + low * BLOCK, first + high * BLOCK, BLOCK):
        # Whole vectors, unless each plane is a single number.
        count = min(BLOCK, size - block)
        _moments(buffers, source + block, size, channels, count, eps, means, scales)
        for channel in range(channels):
            weight, bias = values[rows + channel], biases[op[at.BIASES] + channel]
            one, two = np.uint64(source + channel * size + block), np.uint64(out + channel * size + block)
            for i in range(np.uint64(count)):
                buffers[two + i] = (buffers[one + i] - means[i]) * scales[i] * weight + bias
        _clear_between(op, buffers, block - first, count)
    # The padding above and below all rows.
    low, high = share(channels, part, parts)
    covered = min(size, first + (span + BLOCK - 1) // BLOCK * BLOCK)
    for channel in range(low, high):
        fill(buffers, out + channel * size, first, 0)
        fill(buffers, out + channel * size + covered, size - covered, 0)


@njit(**FAST, inline="always")
def _moments(buffers, begin, size, channels, count, eps, means, scales):
    """Write the means over the channels and the inverse standard deviations, both from sums of differences.

    Means are computed relative to the first channel, hence exact if all channels are equal, even for a small eps.
    """
    each, first = np.float32(1) / np.float32(channels), np.uint64(begin)
    fill(means, 0, count, 0)
    for channel in range(1, channels):
        place = np.uint64(begin + channel * size)
        for i in range(np.uint64(count)):
            means[i] += buffers[place + i] - buffers[first + i]
    for i in range(np.uint64(count)):
        means[i] = means[i] * each + buffers[first + i]
    fill(scales, 0, count, 0)
    for channel in range(channels):
        place = np.uint64(begin + channel * size)
        for i in range(np.uint64(count)):
            apart = buffers[place + i] - means[i]
            scales[i] += apart * apart
    for i in range(np.uint64(count)):
        scales[i] = np.float32(1) / np.sqrt(scales[i] * each + eps)


@njit(**FAST)
def _clear_between(op, buffers, begin, count):
    """Zero the padding among `count` floats of every plane; `begin` counts from the first pixel."""
    row, row_stride, size, end = op[at.ROW], op[at.ROW_STRIDE], op[at.OUT_PLANE], begin + count
    start = op[at.OUT] + op[at.FIRST]
    for r in range(begin // row_stride, min((end - 1) // row_stride + 1, op[at.HEIGHT])):
        low, high = max(begin, r * row_stride + row), min(end, (r + 1) * row_stride)
        for channel in range(op[at.CHANNELS] if low < high else 0):
            fill(buffers, start + channel * size + low, high - low, 0)
    low = max(begin, op[at.HEIGHT] * row_stride)
    for channel in range(op[at.CHANNELS] if low < end else 0):
        fill(buffers, start + channel * size + low, end - low, 0)
