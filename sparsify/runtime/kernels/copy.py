"""Kernels that copy: layout conversions, decimation, padding and cropping, upsampling."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

from numba import carray, njit

from .loops import FAST, clear, fill, move, move_pixels, share
from .opcodes import Column as at
from .simd import floats_at

TOGETHER = 16  # channels


@njit(**FAST)
def decimate(op, buffers, part, parts):
    """Write every STRIDE-th pixel of each input plane as a plane."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, stride = op[at.BATCH], op[at.STRIDE_X]
    for channel in range(low, high):
        plane = op[at.IN] + channel * op[at.IN_PLANE]
        target = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST]
        for r in range(op[at.HEIGHT]):
            source, place = plane + r * op[at.STRIDE_Y] * op[at.IN_ROW_STRIDE], target + r * op[at.ROW_STRIDE]
            move_pixels(buffers, place, buffers, source, op[at.ROW] // batch, batch, stride)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST)
def copy(op, buffers, part, parts):
    """Copy planes to others, every OUT_STEP floats."""
    low, high = share(op[at.CHANNELS], part, parts)
    size, out_plane = op[at.OUT_PLANE], op[at.COPY_STRIDE]
    if out_plane == size:
        move(buffers, op[at.OUT] + low * size, 1, buffers, op[at.IN] + low * size, 1, (high - low) * size)
    else:
        for channel in range(low, high):
            move(buffers, op[at.OUT] + channel * out_plane, 1, buffers, op[at.IN] + channel * size, 1, size)


@njit(**FAST)
def pad_crop(op, buffers, scalars, part, parts):
    """Write planes: a window of the input's, from row PADDING_Y and column PADDING_X on, padded with a value."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, top, width = op[at.BATCH], op[at.PADDING_Y], op[at.IN_WIDTH] * op[at.BATCH]
    left = op[at.PADDING_X] * batch
    # Within an output row: the length of the padding before the input's pixels, and the end of these.
    before, end = min(max(-left, 0), op[at.ROW]), min(max(width - left, 0), op[at.ROW])
    value = scalars[op[at.SCALARS]]
    for channel in range(low, high):
        for r in range(op[at.HEIGHT]):
            target = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST] + r * op[at.ROW_STRIDE]
            if 0 <= r + top < op[at.IN_HEIGHT] and before < end:
                source = op[at.IN] + channel * op[at.IN_PLANE] + (r + top) * op[at.IN_ROW_STRIDE]
                fill(buffers, target, before, value)
                move(buffers, target + before, 1, buffers, source + before + left, 1, end - before)
                fill(buffers, target + end, op[at.ROW] - end, value)
            else:
                fill(buffers, target, op[at.ROW], value)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST)
def upsample(op, buffers, part, parts):
    """Write each pixel KERNEL_ROWS x KERNEL times."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, times = op[at.BATCH], op[at.KERNEL_X]
    for channel in range(low, high):
        plane = op[at.IN] + channel * op[at.IN_PLANE]
        target = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST]
        for r in range(op[at.HEIGHT]):
            source, row = plane + r // op[at.KERNEL_Y] * op[at.IN_ROW_STRIDE], target + r * op[at.ROW_STRIDE]
            if r % op[at.KERNEL_Y] > 0:
                move(buffers, row, 1, buffers, row - op[at.ROW_STRIDE], 1, op[at.ROW])
            elif batch == 1:
                for k in range(times):
                    move(buffers, row + k, times, buffers, source, 1, op[at.IN_WIDTH])
            else:
                for c in range(op[at.IN_WIDTH]):
                    for k in range(times):
                        move(buffers, row + (c * times + k) * batch, 1, buffers, source + c * batch, 1, batch)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST)
def pack(op, buffers, addresses, part, parts):
    """Write planes from a contiguous torch tensor, [image, channel, row, column]."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, height, width = op[at.BATCH], op[at.HEIGHT], op[at.ROW] // op[at.BATCH]
    image = op[at.CHANNELS] * height * width
    source = carray(floats_at(addresses[op[at.TENSOR]]), batch * image)
    for channel in range(low, high):
        for r in range(height):
            place = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST] + r * op[at.ROW_STRIDE]
            begin = (channel * height + r) * width
            if width >= batch:
                for n in range(batch):
                    move(buffers, place + n, batch, source, n * image + begin, 1, width)
            else:
                for c in range(width):
                    move(buffers, place + c * batch, 1, source, begin + c, image, batch)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST)
def unpack(op, buffers, addresses, part, parts):
    """Write a contiguous torch tensor, [image, channel, row, column], from planes."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, height, width = op[at.BATCH], op[at.IN_HEIGHT], op[at.IN_WIDTH]
    image = op[at.CHANNELS] * height * width
    target = carray(floats_at(addresses[op[at.TENSOR]]), batch * image)
    for channel in range(low, high):
        for r in range(height):
            source = op[at.IN] + channel * op[at.IN_PLANE] + r * op[at.IN_ROW_STRIDE]
            begin = (channel * height + r) * width
            if width >= batch:
                for n in range(batch):
                    move(target, n * image + begin, 1, buffers, source + n, batch, width)
            else:
                for c in range(width):
                    move(target, begin + c, image, buffers, source + c * batch, 1, batch)


@njit(**FAST)
def pack_channels_last(op, buffers, addresses, part, parts):
    """Write planes from a contiguous tensor [image, row, column, channel]."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, height, width, count = op[at.BATCH], op[at.HEIGHT], op[at.ROW] // op[at.BATCH], op[at.CHANNELS]
    source = carray(floats_at(addresses[op[at.TENSOR]]), batch * height * width * count)
    # As many channels at once as fit a cache line.
    for channel in range(low, high, TOGETHER):
        some = min(TOGETHER, high - channel)
        for r in range(height):
            place = op[at.OUT] + channel * op[at.OUT_PLANE] + op[at.FIRST] + r * op[at.ROW_STRIDE]
            for c in range(width):
                for n in range(batch):
                    begin = ((n * height + r) * width + c) * count + channel
                    move(buffers, place + c * batch + n, op[at.OUT_PLANE], source, begin, 1, some)
    clear(buffers, op[at.OUT], op, low, high)


@njit(**FAST)
def unpack_channels_last(op, buffers, addresses, part, parts):
    """Write a contiguous tensor [image, row, column, channel] from planes."""
    low, high = share(op[at.CHANNELS], part, parts)
    batch, height, width, count = op[at.BATCH], op[at.IN_HEIGHT], op[at.IN_WIDTH], op[at.CHANNELS]
    target = carray(floats_at(addresses[op[at.TENSOR]]), batch * height * width * count)
    for channel in range(low, high, TOGETHER):
        some = min(TOGETHER, high - channel)
        for r in range(height):
            source = op[at.IN] + channel * op[at.IN_PLANE] + r * op[at.IN_ROW_STRIDE]
            for c in range(width):
                for n in range(batch):
                    begin = ((n * height + r) * width + c) * count + channel
                    move(target, begin, 1, buffers, source + c * batch + n, op[at.IN_PLANE], some)
