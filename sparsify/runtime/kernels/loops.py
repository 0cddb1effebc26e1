"""Primitives of the kernels: fill, copy, reduce, scale, the division of work among threads, zeroed padding."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .opcodes import Column as at
from .simd import WIDTH, load_vector, pointer, store_vector

FAST = {"nogil": True, "fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


# Unsigned indices: for signed ones Numba checks for negative values (from the end), which prevents vectorisation.


@njit(**FAST)
def blocks(count):
    """Return the next multiple of the floats that one step of a vectorised loop takes: no rest is done one by one."""
    return (count + 63) // 64 * 64


@njit(**FAST, inline="always")
def fill(into, begin, count, value):
    """Set `count` floats to a value."""
    first = np.uint64(begin)
    for i in range(np.uint64(max(count, 0))):
        into[first + i] = value


@njit(**FAST, inline="always")
def move(into, place, into_stride, source, begin, stride, count):
    """Copy `count` floats, every stride-th of the source, to every into_stride-th place."""
    first, other, near, far = np.uint64(place), np.uint64(begin), np.uint64(into_stride), np.uint64(stride)
    if into_stride == 1 and stride == 1:
        for i in range(np.uint64(count)):
            into[first + i] = source[other + i]
    else:
        for i in range(np.uint64(count)):
            into[first + i * near] = source[other + i * far]


def every_second(batch):
    """Return a function of addresses of floats that writes one vector: every second group of `batch` floats there.

    A vector is a multiple of `batch`; if it is equal to it, the vector there is copied.
    """

    @intrinsic
    def deinterleave(typing, out, source):
        floats = types.CPointer(types.float32)
        return types.void(floats, floats), generate

    def generate(context, builder, signature, args):
        out, source = args
        places = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [i + i // batch * batch for i in range(WIDTH)])
        low, high = (
            load_vector(builder, builder.gep(source, [ir.Constant(ir.IntType(64), begin)])) for begin in (0, WIDTH)
        )
        store_vector(builder, builder.shuffle_vector(low, high, places), out)
        return context.get_dummy_value()

    return deinterleave


_second, _second_pair, _second_four, _second_eight = (every_second(min(batch, WIDTH)) for batch in (1, 2, 4, 8))
_whole = every_second(WIDTH)


@njit(**FAST)
def move_pixels(into, place, source, begin, columns, batch, stride):
    """Copy `columns` pixels of `batch` floats, every stride-th of the source.

    More than one are copied in whole vectors, as planes allow: up to a vector beyond the last is written, and as much
    times the stride is read.
    """
    count = columns * batch
    if columns > 1 and batch % WIDTH == 0:
        for c in range(columns):
            for i in range(0, batch, WIDTH):
                _whole(pointer(into, place + c * batch + i), pointer(source, begin + c * stride * batch + i))
    elif columns > 1 and stride == 2 and batch == 1:
        for i in range(0, count, WIDTH):
            _second(pointer(into, place + i), pointer(source, begin + 2 * i))
    elif columns > 1 and stride == 2 and batch == 2:
        for i in range(0, count, WIDTH):
            _second_pair(pointer(into, place + i), pointer(source, begin + 2 * i))
    elif columns > 1 and stride == 2 and batch == 4:
        for i in range(0, count, WIDTH):
            _second_four(pointer(into, place + i), pointer(source, begin + 2 * i))
    elif columns > 1 and stride == 2 and batch == 8:
        for i in range(0, count, WIDTH):
            _second_eight(pointer(into, place + i), pointer(source, begin + 2 * i))
    elif batch == 1:
        move(into, place, 1, source, begin, stride, columns)
    else:
        for c in range(columns):
            move(into, place + c * batch, 1, source, begin + c * stride * batch, 1, batch)


@njit(**FAST, inline="always")
def reduce(into, place, source, begin, stride, count, largest):
    """Write the larger of into[place + i] and source[begin + i * stride], or their sum. NaN propagates."""
    first, other, far = np.uint64(place), np.uint64(begin), np.uint64(stride)
    if largest:
        for i in range(np.uint64(count)):
            one, two = into[first + i], source[other + i * far]
            into[first + i] = one if one > two or one != one else two
    else:
        for i in range(np.uint64(count)):
            into[first + i] += source[other + i * far]


@njit(**FAST, inline="always")
def multiply(into, place, source, begin, count, factor):
    """Write `count` floats of the source times a factor."""
    first, other = np.uint64(place), np.uint64(begin)
    for i in range(np.uint64(count)):
        into[first + i] = source[other + i] * factor


@njit(**FAST)
def share(count, part, parts):
    """Return the range of `part` among `count` items: first, and last plus one."""
    return count * part // parts, count * (part + 1) // parts


@njit(**FAST)
def clear(buffers, start, op, low, high):
    """Set the padding of the output's planes low..high to zero."""
    clear_run(buffers, start, op, low, high, 0, op[at.HEIGHT] * op[at.ROW_STRIDE])


@njit(**FAST)
def clear_run(buffers, start, op, low, high, begin, end):
    """As `clear` for a range in floats from a plane's first pixel, with padding above and below its rows."""
    row, row_stride, size, first = op[at.ROW], op[at.ROW_STRIDE], op[at.OUT_PLANE], op[at.FIRST]
    span = op[at.HEIGHT] * row_stride
    for channel in range(low, high):
        plane = start + channel * size
        if begin == 0:
            fill(buffers, plane, first, 0)
        if row_stride > row:
            for r in range(begin // row_stride, (end + row_stride - 1) // row_stride):
                left, right = max(begin, r * row_stride + row), min(end, (r + 1) * row_stride)
                fill(buffers, plane + first + left, right - left, 0)
        if end == span:
            fill(buffers, plane + first + span, size - first - span, 0)
