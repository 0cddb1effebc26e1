"""Pooling kernels: max, average and global average."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .loops import FAST, blocks, clear, fill, move, move_pixels, multiply, reduce, share
from .opcodes import Column as at
from .opcodes import Opcode


@njit(**FAST)
def pool(op, buffers, part, parts):
    """Write the largest pixel of each window, or its mean.

    The sum is divided by DIVISOR; if that is 0, by the window's pixels; if negative, by pixels and padding.
    """
    low, high = share(op[at.CHANNELS], part, parts)
    batch, row_stride, width, row = op[at.BATCH], op[at.IN_ROW_STRIDE], op[at.IN_WIDTH], op[at.ROW]
    columns, stride, largest = row // batch, op[at.STRIDE_X], op[at.OPCODE] == Opcode.MAX_POOL
    start = np.float32(-np.inf) if largest else np.float32(0)
    # One row of windows: reduced over its rows, then at every column over the next ones, of which a stride keeps some.
    # Both are contiguous; in blocks nothing remains that a loop would do one by one.
    padding, reach = op[at.PADDING_X] * batch, ((columns - 1) * stride + 1) * batch
    inner, whole = blocks(width * batch), blocks(reach)
    line = np.full(padding + max(inner, whole + op[at.KERNEL_X] * batch), start)
    every, best = np.empty(whole + blocks(batch * stride), np.float32), np.empty(blocks(row), np.float32)
    for channel in range(low, high):
        plane = op[at.IN] + channel * op[at.IN_PLANE]
        target = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST]
        for r in range(op[at.HEIGHT]):
            top = r * op[at.STRIDE_Y] - op[at.PADDING_Y]
            y0, y1 = max(top, 0), min(top + op[at.KERNEL_Y], op[at.IN_HEIGHT])
            move(line, padding, 1, buffers, plane + y0 * row_stride, 1, inner)
            for y in range(y0 + 1, y1):
                reduce(line, padding, buffers, plane + y * row_stride, 1, inner, largest)
            fill(line, padding + width * batch, inner - width * batch, start)
            move(every, 0, 1, line, 0, 1, whole)
            for k in range(1, op[at.KERNEL_X]):
                reduce(every, 0, line, k * batch, 1, whole, largest)
            move_pixels(best, 0, every, 0, columns, batch, stride)
            place = target + r * op[at.ROW_STRIDE]
            if largest:
                move(buffers, place, 1, best, 0, 1, row)
            else:
                for c in range(columns):
                    x0 = c * stride - op[at.PADDING_X]
                    divisor = op[at.DIVISOR]
                    if divisor == 0:
                        divisor = (y1 - y0) * (min(x0 + op[at.KERNEL_X], width) - max(x0, 0))
                    elif divisor < 0:
                        divisor = (min(top + op[at.KERNEL_Y], op[at.IN_HEIGHT] + op[at.PADDING_Y]) - top) * (
                            min(x0 + op[at.KERNEL_X], width + op[at.PADDING_X]) - x0
                        )
                    factor = np.float32(1) / np.float32(divisor)
                    multiply(buffers, place + c * batch, best, c * batch, batch, factor)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**{**FAST, "fastmath": True})
def mean(op, buffers, part, parts):
    """Write the mean of each plane's pixels."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, row = op[at.BATCH], op[at.IN_WIDTH] * op[at.BATCH]
    factor = np.float32(1) / np.float32(op[at.IN_HEIGHT] * op[at.IN_WIDTH])
    sums = np.empty(row, np.float32)
    for channel in range(low, high):
        source = op[at.IN] + channel * op[at.IN_PLANE]
        fill(sums, 0, row, 0)
        for y in range(op[at.IN_HEIGHT]):
            reduce(sums, 0, buffers, source + y * op[at.IN_ROW_STRIDE], 1, row, False)
        # Rows first, which are long, then the columns of their sum.
        target = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST]
        fill(buffers, target, batch, 0)
        if batch == 1:
            total = np.float32(0)
            for x in range(np.uint64(row)):
                total += sums[x]
            buffers[target] = total * factor
        else:
            for x in range(0, row, batch):
                reduce(buffers, target, sums, x, 1, batch, False)
            multiply(buffers, target, buffers, target, batch, factor)
    clear(buffers, op[at.OUT], op, low, high)
