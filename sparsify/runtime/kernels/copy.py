"""Kernels that only move pixels: to other layouts, into other planes, to and from torch's tensors."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

from numba import carray, njit

from .loops import FAST, clear, fill, move, share
from .opcodes import Column as at
from .simd import floats_at

TOGETHER = 16  # channels


@njit(**FAST)
def split(step, buffers, part, parts):
    """Write every STRIDE-th pixel of each input plane as a plane."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, stride = step[at.BATCH], step[at.STRIDE_X]
    for channel in range(low, high):
        plane, target = (
            step[at.IN] + channel * step[at.IN_PLANE],
            step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST],
        )
        for r in range(step[at.HEIGHT]):
            source, place = plane + r * step[at.STRIDE_Y] * step[at.IN_ROW_STRIDE], target + r * step[at.ROW_STRIDE]
            if lanes == 1 and stride == 2:
                move(buffers, place, 1, buffers, source, 2, step[at.ROW])
            elif lanes == 1:
                move(buffers, place, 1, buffers, source, stride, step[at.ROW])
            else:
                for c in range(step[at.ROW] // lanes):
                    move(buffers, place + c * lanes, 1, buffers, source + c * stride * lanes, 1, lanes)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST)
def copy(step, buffers, part, parts):
    """Copy planes to others, every OUT_STEP floats."""
    low, high = share(step[at.CHANNELS], part, parts)
    size, pace = step[at.OUT_PLANE], step[at.COPY_STRIDE]
    if pace == size:
        move(buffers, step[at.OUT] + low * size, 1, buffers, step[at.IN] + low * size, 1, (high - low) * size)
    else:
        for channel in range(low, high):
            move(buffers, step[at.OUT] + channel * pace, 1, buffers, step[at.IN] + channel * size, 1, size)


@njit(**FAST)
def place(step, buffers, limits, part, parts):
    """Write planes that are a window of the input's, which begins at MARGIN_ROWS, MARGIN; a number is all around it."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, top, width = step[at.BATCH], step[at.PADDING_Y], step[at.IN_WIDTH] * step[at.BATCH]
    left = step[at.PADDING_X] * lanes
    # Of an output row: what comes before the input's pixels, and where they end.
    before, end = min(max(-left, 0), step[at.ROW]), min(max(width - left, 0), step[at.ROW])
    value = limits[step[at.SCALARS]]
    for channel in range(low, high):
        for r in range(step[at.HEIGHT]):
            target = step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST] + r * step[at.ROW_STRIDE]
            if 0 <= r + top < step[at.IN_HEIGHT] and before < end:
                source = step[at.IN] + channel * step[at.IN_PLANE] + (r + top) * step[at.IN_ROW_STRIDE]
                fill(buffers, target, before, value)
                move(buffers, target + before, 1, buffers, source + before + left, 1, end - before)
                fill(buffers, target + end, step[at.ROW] - end, value)
            else:
                fill(buffers, target, step[at.ROW], value)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST)
def enlarge(step, buffers, part, parts):
    """Write each pixel KERNEL_ROWS x KERNEL times."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, times = step[at.BATCH], step[at.KERNEL_X]
    for channel in range(low, high):
        plane = step[at.IN] + channel * step[at.IN_PLANE]
        target = step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST]
        for r in range(step[at.HEIGHT]):
            source, row = plane + r // step[at.KERNEL_Y] * step[at.IN_ROW_STRIDE], target + r * step[at.ROW_STRIDE]
            if r % step[at.KERNEL_Y] > 0:
                move(buffers, row, 1, buffers, row - step[at.ROW_STRIDE], 1, step[at.ROW])
            elif lanes == 1:
                for k in range(times):
                    move(buffers, row + k, times, buffers, source, 1, step[at.IN_WIDTH])
            else:
                for c in range(step[at.IN_WIDTH]):
                    for k in range(times):
                        move(buffers, row + (c * times + k) * lanes, 1, buffers, source + c * lanes, 1, lanes)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST)
def pack(step, buffers, addresses, part, parts):
    """Write planes from images as torch has them, [image, channel, row, column] without gaps."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width = step[at.BATCH], step[at.HEIGHT], step[at.ROW] // step[at.BATCH]
    image = step[at.CHANNELS] * height * width
    source = carray(floats_at(addresses[step[at.TENSOR]]), lanes * image)
    for channel in range(low, high):
        for r in range(height):
            place = step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST] + r * step[at.ROW_STRIDE]
            begin = (channel * height + r) * width
            if width >= lanes:
                for n in range(lanes):
                    move(buffers, place + n, lanes, source, n * image + begin, 1, width)
            else:
                for c in range(width):
                    move(buffers, place + c * lanes, 1, source, begin + c, image, lanes)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST)
def unpack(step, buffers, addresses, part, parts):
    """Write images as torch has them, [image, channel, row, column] without gaps, from planes."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width = step[at.BATCH], step[at.IN_HEIGHT], step[at.IN_WIDTH]
    image = step[at.CHANNELS] * height * width
    target = carray(floats_at(addresses[step[at.TENSOR]]), lanes * image)
    for channel in range(low, high):
        for r in range(height):
            source = step[at.IN] + channel * step[at.IN_PLANE] + r * step[at.IN_ROW_STRIDE]
            begin = (channel * height + r) * width
            if width >= lanes:
                for n in range(lanes):
                    move(target, n * image + begin, 1, buffers, source + n, lanes, width)
            else:
                for c in range(width):
                    move(target, begin + c, image, buffers, source + c * lanes, 1, lanes)


@njit(**FAST)
def pack_channels_last(step, buffers, addresses, part, parts):
    """Write planes from a tensor [image, row, column, channel] without gaps."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width, count = step[at.BATCH], step[at.HEIGHT], step[at.ROW] // step[at.BATCH], step[at.CHANNELS]
    source = carray(floats_at(addresses[step[at.TENSOR]]), lanes * height * width * count)
    # As many channels at once as a line of the cache has of a pixel.
    for channel in range(low, high, TOGETHER):
        some = min(TOGETHER, high - channel)
        for r in range(height):
            place = step[at.OUT] + channel * step[at.OUT_PLANE] + step[at.FIRST] + r * step[at.ROW_STRIDE]
            for c in range(width):
                for n in range(lanes):
                    begin = ((n * height + r) * width + c) * count + channel
                    move(buffers, place + c * lanes + n, step[at.OUT_PLANE], source, begin, 1, some)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**FAST)
def unpack_channels_last(step, buffers, addresses, part, parts):
    """Write a tensor [image, row, column, channel] without gaps from planes."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width, count = step[at.BATCH], step[at.IN_HEIGHT], step[at.IN_WIDTH], step[at.CHANNELS]
    target = carray(floats_at(addresses[step[at.TENSOR]]), lanes * height * width * count)
    for channel in range(low, high, TOGETHER):
        some = min(TOGETHER, high - channel)
        for r in range(height):
            source = step[at.IN] + channel * step[at.IN_PLANE] + r * step[at.IN_ROW_STRIDE]
            for c in range(width):
                for n in range(lanes):
                    begin = ((n * height + r) * width + c) * count + channel
                    move(target, begin, 1, buffers, source + c * lanes + n, step[at.IN_PLANE], some)
