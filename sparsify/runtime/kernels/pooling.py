"""Kernels that make one pixel of many: the largest or the mean of each window, the mean of each plane."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .loops import FAST, clear, fill, move, multiply, reduce, share
from .opcodes import Column as at
from .opcodes import Opcode


@njit(**FAST)
def pool(step, buffers, part, parts):
    """Write the largest pixel of each window, or its mean.

    That is divided by DIVISOR; if it is 0, by the window's pixels; if it is below, by these and those of the padding.
    """
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, pitch, width, row = step[at.BATCH], step[at.IN_ROW_STRIDE], step[at.IN_WIDTH], step[at.ROW]
    columns, stride, largest = row // lanes, step[at.STRIDE_X], step[at.OPCODE] == Opcode.MAX_POOL
    start = np.float32(-np.inf) if largest else np.float32(0)
    # One row of windows: reduced over its rows first, which are read without a gap, then over its columns.
    margin = step[at.PADDING_X] * lanes
    line = np.full(margin + max(width, (columns - 1) * stride + step[at.KERNEL_X]) * lanes, start)
    best = np.empty(row, np.float32)
    for channel in range(low, high):
        plane, target = (
            step[at.IN] + channel * step[at.IN_PLANE],
            step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST],
        )
        for r in range(step[at.HEIGHT]):
            top = r * step[at.STRIDE_Y] - step[at.PADDING_Y]
            y0, y1 = max(top, 0), min(top + step[at.KERNEL_Y], step[at.IN_HEIGHT])
            move(line, margin, 1, buffers, plane + y0 * pitch, 1, width * lanes)
            for y in range(y0 + 1, y1):
                reduce(line, margin, buffers, plane + y * pitch, 1, width * lanes, largest)
            fill(best, 0, row, start)
            for k in range(step[at.KERNEL_X]):
                if lanes == 1 and stride == 2:
                    reduce(best, 0, line, k, 2, columns, largest)
                elif stride == 1:
                    reduce(best, 0, line, k * lanes, 1, row, largest)
                elif lanes == 1:
                    reduce(best, 0, line, k, stride, columns, largest)
                else:
                    for c in range(columns):
                        reduce(best, c * lanes, line, (c * stride + k) * lanes, 1, lanes, largest)
            place = target + r * step[at.ROW_STRIDE]
            if largest:
                move(buffers, place, 1, best, 0, 1, row)
            else:
                for c in range(columns):
                    x0 = c * stride - step[at.PADDING_X]
                    divisor = step[at.DIVISOR]
                    if divisor == 0:
                        divisor = (y1 - y0) * (min(x0 + step[at.KERNEL_X], width) - max(x0, 0))
                    elif divisor < 0:
                        divisor = (min(top + step[at.KERNEL_Y], step[at.IN_HEIGHT] + step[at.PADDING_Y]) - top) * (
                            min(x0 + step[at.KERNEL_X], width + step[at.PADDING_X]) - x0
                        )
                    factor = np.float32(1) / np.float32(divisor)
                    multiply(buffers, place + c * lanes, best, c * lanes, lanes, factor)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**{**FAST, "fastmath": True})
def mean(step, buffers, part, parts):
    """Write the mean of each plane's pixels."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, row = step[at.BATCH], step[at.IN_WIDTH] * step[at.BATCH]
    factor = np.float32(1) / np.float32(step[at.IN_HEIGHT] * step[at.IN_WIDTH])
    sums = np.empty(row, np.float32)
    for channel in range(low, high):
        source = step[at.IN] + channel * step[at.IN_PLANE]
        fill(sums, 0, row, 0)
        for y in range(step[at.IN_HEIGHT]):
            reduce(sums, 0, buffers, source + y * step[at.IN_ROW_STRIDE], 1, row, False)
        # Rows are long, pixels are not: the columns of their sum come last.
        target = step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST]
        fill(buffers, target, lanes, 0)
        if lanes == 1:
            total = np.float32(0)
            for x in range(np.uint64(row)):
                total += sums[x]
            buffers[target] = total * factor
        else:
            for x in range(0, row, lanes):
                reduce(buffers, target, sums, x, 1, lanes, False)
            multiply(buffers, target, buffers, target, lanes, factor)
    clear(buffers, step[at.OUT], step, low, high)
