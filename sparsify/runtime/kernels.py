"""The steps of a program in machine code: one function each, and `run`, which goes through a table of steps.

A buffer holds *planes*: for each channel the pixels of all images (lanes), image innermost, with borders of zeros that
neighbouring rows share (layout.py). Every offset and size in a step counts floats. A step is a row of integers, whose
columns program.py names; its part of the work is `part` of `parts`, by channels.
"""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import carray, njit

from . import columns as at
from .simd import (
    TILE,
    TILE_VECTORS,
    WIDTH,
    arrive,
    exchange,
    floats_at,
    give_way,
    longs_at,
    offsets_at,
    pointer,
    seen,
    weighted_sums,
)

_sums8, _sums7, _sums4, _sums2, _sums1 = (weighted_sums(count) for count in (8, 7, 4, 2, 1))
_sums2x4, _sums2x2 = weighted_sums(4, rows=2), weighted_sums(2, rows=2)
_shared, _shared1 = weighted_sums(TILE_VECTORS, TILE), weighted_sums(1, TILE)
_shared_rows = weighted_sums(TILE_VECTORS // 2, TILE, rows=2)
# Counters that all threads see, each on a cache line of its own: jobs given, steps ended, and who sleeps.
GIVEN, ENDED, ASLEEP = 0, 16, 32
LOOKS = 1_000_000  # for a job, about a millisecond, before a thread goes to sleep, from which it wakes slowly
PATIENCE = 4096  # looks at whether the other threads are done, before one of them may need this core
_FAST = {"nogil": True, "cache": True, "fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


# Numba looks for negative indices, from the end, unless they are unsigned; and then nothing is vectorised.


@njit(**_FAST, inline="always")
def fill(into, begin, count, value):
    """Set `count` floats to a value."""
    first = np.uint64(begin)
    for i in range(np.uint64(max(count, 0))):
        into[first + i] = value


@njit(**_FAST, inline="always")
def move(into, place, pace, source, begin, stride, count):
    """Copy `count` floats, every stride-th of the source, to every pace-th place."""
    first, other, near, far = np.uint64(place), np.uint64(begin), np.uint64(pace), np.uint64(stride)
    if pace == 1 and stride == 1:
        for i in range(np.uint64(count)):
            into[first + i] = source[other + i]
    else:
        for i in range(np.uint64(count)):
            into[first + i * near] = source[other + i * far]


@njit(**_FAST, inline="always")
def reduce(into, place, source, begin, stride, count, largest):
    """Take the larger of into[place + i] and source[begin + i * stride], or the sum. A NaN stays."""
    first, other, far = np.uint64(place), np.uint64(begin), np.uint64(stride)
    if largest:
        for i in range(np.uint64(count)):
            one, two = into[first + i], source[other + i * far]
            into[first + i] = one if one > two or one != one else two
    else:
        for i in range(np.uint64(count)):
            into[first + i] += source[other + i * far]


@njit(**_FAST, inline="always")
def multiply(into, place, source, begin, count, factor):
    """Write `count` floats of the source times a factor."""
    first, other = np.uint64(place), np.uint64(begin)
    for i in range(np.uint64(count)):
        into[first + i] = source[other + i] * factor


@njit(**_FAST)
def share(count, part, parts):
    """Return the first and the last plus one of `count` items that are `part`'s."""
    return count * part // parts, count * (part + 1) // parts


@njit(**_FAST)
def share_of_rows(pointers, first, count, part, parts):
    """Return the output channels that are `part`'s, so that each part has about as many weights, and some lanes."""
    begin, total = pointers[first], pointers[first + count] - pointers[first] + 8 * count
    edges = (0, 0)
    for side in range(2):
        wanted = total * (part + side) // parts
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if pointers[first + middle] - begin + 8 * middle < wanted:
                low = middle + 1
            else:
                high = middle
        edges = (edges[1], low)
    return edges


@njit(**_FAST)
def clear(buffers, start, step, low, high):
    """Set the borders of the output's planes low..high to zero: whatever is no pixel."""
    height, row, pitch, size, first = step[at.HEIGHT], step[at.ROW], step[at.PITCH], step[at.OUT_SIZE], step[at.FIRST]
    for channel in range(low, high):
        plane = start + channel * size
        fill(buffers, plane, first, 0)
        if pitch > row:
            for r in range(height):
                fill(buffers, plane + first + r * pitch + row, pitch - row, 0)
        fill(buffers, plane + first + height * pitch, size - first - height * pitch, 0)


@njit(**_FAST, inline="always")
def tile_sums(shape, x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most):
    """Do one tile of rows.SHAPES."""
    if shape == 0:
        _sums8(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    elif shape == 1:
        _sums7(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    elif shape == 2:
        _sums2x4(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    else:
        _sums2x2(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)


@njit(**_FAST, inline="always")
def shared_sums(shape, x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most):
    """Do one tile of rows.SHARED_SHAPES, or one vector."""
    if shape == 0:
        _shared(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    elif shape == 1:
        _shared_rows(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    else:
        _shared1(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)


@njit(**_FAST, inline="always")
def piece_sums(vectors, x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most):
    """Do as many vectors of one row as there is a function for, and return how many."""
    if vectors >= 4:
        _sums4(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
        return 4
    if vectors >= 2:
        _sums2(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
        return 2
    _sums1(x, where, values, begin, end, bias, out, other, size, pitch, pace, resumes, adds, least, most)
    return 1


@njit(**_FAST)
def convolve(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Write planes that are weighted sums of shifted input planes, and a bias; then a residual, then a clamp.

    A residual in the output's own place is what the sums begin with.
    """
    out, residual, size, first = step[at.OUT], step[at.RESIDUAL], step[at.OUT_SIZE], step[at.POINTERS]
    count, chunks, rows, wide = step[at.CHANNELS], step[at.CHUNKS], step[at.TILE_ROWS], step[at.BLOCK]
    pitch, pace, lines, span = step[at.IN_LINE], step[at.OUT_LINE], step[at.LINES], step[at.SPAN]
    low, high = share_of_rows(pointers, first, count, part, parts)
    where, values, nothing = pointer(offsets, 0), pointer(weights, step[at.WEIGHTS]), pointer(biases, biases.size - 1)
    inside = residual == out
    other = residual if residual >= 0 else out
    for line in range(0, lines, rows):
        for block in range(0, span, wide):
            source, target = step[at.IN] + line * pitch + block, step[at.FIRST] + line * pace + block
            whole = line + rows <= lines and block + wide < span + WIDTH
            left = (min(span - block, wide) + WIDTH - 1) // WIDTH
            for chunk in range(chunks):
                # What a chunk of input channels has in this block stays in the cache for all outputs.
                ends = chunk == chunks - 1
                resumes, adds = inside or chunk > 0, ends and residual >= 0 and not inside
                least = limits[step[at.LIMITS]] if ends else np.float32(-np.inf)
                most = limits[step[at.LIMITS] + 1] if ends else np.float32(np.inf)
                for channel in range(low, high):
                    row = first + chunk * count + channel
                    begin, end = pointers[row], pointers[row + 1]
                    if begin == end and chunk > 0 and not ends:
                        continue
                    bias = nothing if chunk else pointer(biases, step[at.BIASES] + channel)
                    place = target + channel * size
                    if whole:
                        x, near = pointer(buffers, source), pointer(buffers, out + place)
                        more = pointer(buffers, other + place)
                        tile_sums(
                            step[at.SHAPE], x, where, values, begin, end, bias, near, more,
                            size, pitch, pace, resumes, adds, least, most,
                        )  # fmt: skip
                        continue
                    for r in range(min(rows, lines - line)):
                        i = 0
                        while i < left:
                            to = place + r * pace + i * WIDTH
                            x = pointer(buffers, source + r * pitch + i * WIDTH)
                            near, more = pointer(buffers, out + to), pointer(buffers, other + to)
                            i += piece_sums(
                                left - i, x, where, values, begin, end, bias, near, more,
                                size, pitch, pace, resumes, adds, least, most,
                            )  # fmt: skip
    clear(buffers, out, step, low, high)


@njit(**_FAST)
def convolve_tiles(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Do what `convolve` does for weights with few zeros: TILE output planes at once share what they read."""
    out, residual, size = step[at.OUT], step[at.RESIDUAL], step[at.OUT_SIZE]
    pitch, pace, lines, span = step[at.IN_LINE], step[at.OUT_LINE], step[at.LINES], step[at.SPAN]
    rows, wide = step[at.TILE_ROWS], step[at.BLOCK]
    low, high = share(step[at.CHANNELS] // TILE, part, parts)
    least, most = limits[step[at.LIMITS]], limits[step[at.LIMITS] + 1]
    inside = residual == out
    adds = residual >= 0 and not inside
    other = residual if adds else out
    where, values = pointer(offsets, 0), pointer(weights, step[at.WEIGHTS])
    for line in range(0, lines, rows):
        for block in range(0, span, wide):
            source, target = step[at.IN] + line * pitch + block, step[at.FIRST] + line * pace + block
            whole = line + rows <= lines and block + wide < span + WIDTH
            left = (min(span - block, wide) + WIDTH - 1) // WIDTH
            for tile in range(low, high):
                begin, end = pointers[step[at.POINTERS] + tile], pointers[step[at.POINTERS] + tile + 1]
                bias = pointer(biases, step[at.BIASES] + tile * TILE)
                place = target + tile * TILE * size
                for r in range(1 if whole else min(rows, lines - line)):
                    for i in range(1 if whole else left):
                        to = place + r * pace + i * WIDTH
                        x = pointer(buffers, source + r * pitch + i * WIDTH)
                        near, more = pointer(buffers, out + to), pointer(buffers, other + to)
                        shared_sums(
                            step[at.SHAPE] if whole else -1, x, where, values, begin, end, bias, near, more,
                            size, pitch, pace, inside, adds, least, most,
                        )  # fmt: skip
    clear(buffers, out, step, low * TILE, high * TILE)


@njit(**{**_FAST, "fastmath": True})
def dot(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Write one number for each output channel: the sum of its weights times the floats they are for. One image."""
    x, out, residual = step[at.IN], step[at.OUT], step[at.RESIDUAL]
    low, high = share_of_rows(pointers, step[at.POINTERS], step[at.CHANNELS], part, parts)
    least, most = limits[step[at.LIMITS]], limits[step[at.LIMITS] + 1]
    for channel in range(low, high):
        begin, end = pointers[step[at.POINTERS] + channel], pointers[step[at.POINTERS] + channel + 1]
        total = np.float32(0)
        if end > begin and offsets[end - 1] - offsets[begin] == end - begin - 1:
            first, values = np.uint64(x + np.int64(offsets[begin])), np.uint64(step[at.WEIGHTS] + begin)
            for j in range(np.uint64(end - begin)):
                total += weights[values + j] * buffers[first + j]
        else:
            first, values, places = np.uint64(x), np.uint64(step[at.WEIGHTS] + begin), np.uint64(begin)
            for j in range(np.uint64(end - begin)):
                total += weights[values + j] * buffers[first + np.uint64(offsets[places + j])]
        total += biases[step[at.BIASES] + channel]
        if residual >= 0:
            total += buffers[residual + channel]
        total = least if total < least else total
        buffers[out + channel] = most if total > most else total


@njit(**_FAST)
def split(step, buffers, part, parts):
    """Write every STRIDE-th pixel of each input plane as a plane."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, stride = step[at.LANES], step[at.STRIDE]
    for channel in range(low, high):
        plane, target = (
            step[at.IN] + channel * step[at.IN_SIZE],
            step[at.OUT] + channel * step[at.OUT_SIZE] + step[at.FIRST],
        )
        for r in range(step[at.HEIGHT]):
            source, place = plane + r * step[at.STRIDE_ROWS] * step[at.IN_LINE], target + r * step[at.PITCH]
            if lanes == 1 and stride == 2:
                move(buffers, place, 1, buffers, source, 2, step[at.ROW])
            elif lanes == 1:
                move(buffers, place, 1, buffers, source, stride, step[at.ROW])
            else:
                for c in range(step[at.ROW] // lanes):
                    move(buffers, place + c * lanes, 1, buffers, source + c * stride * lanes, 1, lanes)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**_FAST)
def pool(step, buffers, part, parts):
    """Write the largest pixel of each window, or its mean: divided by DIVISOR, or, if that is 0, by its pixels."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, pitch, width, row = step[at.LANES], step[at.IN_LINE], step[at.IN_WIDTH], step[at.ROW]
    columns, stride, largest = row // lanes, step[at.STRIDE], step[at.KIND] == at.LARGEST
    start = np.float32(-np.inf) if largest else np.float32(0)
    # One row of windows: reduced over its rows first, which are read without a gap, then over its columns.
    margin = step[at.MARGIN] * lanes
    line = np.full(margin + max(width, (columns - 1) * stride + step[at.KERNEL]) * lanes, start)
    best = np.empty(row, np.float32)
    for channel in range(low, high):
        plane, target = (
            step[at.IN] + channel * step[at.IN_SIZE],
            step[at.OUT] + channel * step[at.OUT_SIZE] + step[at.FIRST],
        )
        for r in range(step[at.HEIGHT]):
            y = r * step[at.STRIDE_ROWS] - step[at.MARGIN_ROWS]
            y0, y1 = max(y, 0), min(y + step[at.KERNEL_ROWS], step[at.IN_HEIGHT])
            move(line, margin, 1, buffers, plane + y0 * pitch, 1, width * lanes)
            for y in range(y0 + 1, y1):
                reduce(line, margin, buffers, plane + y * pitch, 1, width * lanes, largest)
            fill(best, 0, row, start)
            for k in range(step[at.KERNEL]):
                if lanes == 1 and stride == 2:
                    reduce(best, 0, line, k, 2, columns, largest)
                elif stride == 1:
                    reduce(best, 0, line, k * lanes, 1, row, largest)
                elif lanes == 1:
                    reduce(best, 0, line, k, stride, columns, largest)
                else:
                    for c in range(columns):
                        reduce(best, c * lanes, line, (c * stride + k) * lanes, 1, lanes, largest)
            place = target + r * step[at.PITCH]
            if largest:
                move(buffers, place, 1, best, 0, 1, row)
            else:
                for c in range(columns):
                    x0 = c * stride - step[at.MARGIN]
                    inside = (y1 - y0) * (min(x0 + step[at.KERNEL], width) - max(x0, 0))
                    factor = np.float32(1) / np.float32(step[at.DIVISOR] if step[at.DIVISOR] > 0 else inside)
                    multiply(buffers, place + c * lanes, best, c * lanes, lanes, factor)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**{**_FAST, "fastmath": True})
def mean(step, buffers, part, parts):
    """Write the mean of each plane's pixels."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes = step[at.LANES]
    factor = np.float32(1) / np.float32(step[at.IN_HEIGHT] * step[at.IN_WIDTH])
    sums = np.empty(lanes, np.float32)
    for channel in range(low, high):
        fill(sums, 0, lanes, 0)
        for y in range(step[at.IN_HEIGHT]):
            source = step[at.IN] + channel * step[at.IN_SIZE] + y * step[at.IN_LINE]
            if lanes == 1:
                first, total = np.uint64(source), np.float32(0)
                for x in range(np.uint64(step[at.IN_WIDTH])):
                    total += buffers[first + x]
                sums[0] += total
            else:
                for x in range(step[at.IN_WIDTH]):
                    reduce(sums, 0, buffers, source + x * lanes, 1, lanes, False)
        multiply(buffers, step[at.OUT] + channel * step[at.OUT_SIZE] + step[at.FIRST], sums, 0, lanes, factor)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**_FAST)
def add(step, buffers, limits, part, parts):
    """Write the sum of two buffers of one layout, or one of them, clamped."""
    low, high = share(step[at.CHANNELS], part, parts)
    least, most = limits[step[at.LIMITS]], limits[step[at.LIMITS] + 1]
    begin, count = low * step[at.OUT_SIZE], np.uint64((high - low) * step[at.OUT_SIZE])
    out, one = np.uint64(step[at.OUT] + begin), np.uint64(step[at.IN] + begin)
    two = np.uint64(max(step[at.RESIDUAL], 0) + begin)
    adds = step[at.RESIDUAL] >= 0
    for i in range(count):
        total = buffers[one + i] + buffers[two + i] if adds else buffers[one + i]
        total = least if total < least else total
        buffers[out + i] = most if total > most else total
    clear(buffers, step[at.OUT], step, low, high)


@njit(**_FAST)
def copy(step, buffers, part, parts):
    """Copy planes to another place, for a concatenation."""
    low, high = share(step[at.CHANNELS], part, parts)
    size = step[at.OUT_SIZE]
    move(buffers, step[at.OUT] + low * size, 1, buffers, step[at.IN] + low * size, 1, (high - low) * size)


@njit(**_FAST)
def pack(step, buffers, addresses, part, parts):
    """Write planes from images as torch has them, [image, channel, row, column] without gaps."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width = step[at.LANES], step[at.HEIGHT], step[at.ROW] // step[at.LANES]
    image = step[at.CHANNELS] * height * width
    source = carray(floats_at(addresses[step[at.TENSOR]]), lanes * image)
    for channel in range(low, high):
        for r in range(height):
            place = step[at.OUT] + channel * step[at.OUT_SIZE] + step[at.FIRST] + r * step[at.PITCH]
            begin = (channel * height + r) * width
            if width >= lanes:
                for n in range(lanes):
                    move(buffers, place + n, lanes, source, n * image + begin, 1, width)
            else:
                for c in range(width):
                    move(buffers, place + c * lanes, 1, source, begin + c, image, lanes)
    clear(buffers, step[at.OUT], step, low, high)


@njit(**_FAST)
def unpack(step, buffers, addresses, part, parts):
    """Write images as torch has them, [image, channel, row, column] without gaps, from planes."""
    low, high = share(step[at.CHANNELS], part, parts)
    lanes, height, width = step[at.LANES], step[at.IN_HEIGHT], step[at.IN_WIDTH]
    image = step[at.CHANNELS] * height * width
    target = carray(floats_at(addresses[step[at.TENSOR]]), lanes * image)
    for channel in range(low, high):
        for r in range(height):
            source = step[at.IN] + channel * step[at.IN_SIZE] + r * step[at.IN_LINE]
            begin = (channel * height + r) * width
            if width >= lanes:
                for n in range(lanes):
                    move(target, n * image + begin, 1, buffers, source + n, lanes, width)
            else:
                for c in range(width):
                    move(target, begin + c, image, buffers, source + c * lanes, 1, lanes)


@njit(**_FAST)
def run(steps, buffers, offsets, weights, pointers, biases, limits, addresses, signals, base, part, parts):
    """Go through all steps, as `part` of `parts` threads that do so at once on the same buffers.

    Each step begins when all threads have ended the one before it: `base` is how many ends the signals told before.
    """
    for number in range(steps.shape[0]):
        step = steps[number]
        kind = step[at.KIND]
        if kind == at.CONVOLVE:
            convolve(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.CONVOLVE_TILES:
            convolve_tiles(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.DOT:
            dot(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.SPLIT:
            split(step, buffers, part, parts)
        elif kind == at.LARGEST or kind == at.AVERAGE:
            pool(step, buffers, part, parts)
        elif kind == at.MEAN:
            mean(step, buffers, part, parts)
        elif kind == at.ADD:
            add(step, buffers, limits, part, parts)
        elif kind == at.COPY:
            copy(step, buffers, part, parts)
        elif kind == at.PACK:
            pack(step, buffers, addresses, part, parts)
        elif kind == at.UNPACK:
            unpack(step, buffers, addresses, part, parts)
        if parts > 1:
            arrive(signals, ENDED)
            waits = 0
            while seen(signals, ENDED) < base + (number + 1) * parts:
                waits += 1
                if waits % PATIENCE == 0:
                    give_way()


@njit(**_FAST)
def give(signals):
    """Say that a new job is there."""
    arrive(signals, GIVEN)


@njit(**_FAST)
def wake(signals, part):
    """Return whether a thread is asleep, and take it as awake from now on."""
    return exchange(signals, ASLEEP + part, 0) == 1


@njit(**_FAST)
def serve(signals, job, part, parts, done):
    """Do a thread's part of every job that is given until none has come for a while; return how many were done.

    A job is what `run` takes, addresses and sizes of the arrays one after the other, and `base`. It stays as it is
    until all threads have ended its last step.
    """
    while True:
        looks = 0
        while seen(signals, GIVEN) == done:
            looks += 1
            if looks % PATIENCE == 0:
                give_way()
            if looks == LOOKS:
                exchange(signals, ASLEEP + part, 1)
                # A job that came in between may or may not have been told to a thread asleep.
                if seen(signals, GIVEN) == done:
                    return done
                exchange(signals, ASLEEP + part, 0)
        columns = len(at.COLUMNS)
        run(
            carray(longs_at(job[0]), (job[1] // columns, columns)),
            carray(floats_at(job[2]), job[3]),
            carray(offsets_at(job[4]), job[5]),
            carray(floats_at(job[6]), job[7]),
            carray(longs_at(job[8]), job[9]),
            carray(floats_at(job[10]), job[11]),
            carray(floats_at(job[12]), job[13]),
            carray(longs_at(job[14]), job[15]),
            signals,
            job[16],
            part,
            parts,
        )
        done += 1
