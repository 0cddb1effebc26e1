"""The steps of a program in machine code: one function each, and `run`, which goes through a table of steps.

A buffer holds *planes*: for each channel the pixels of all images (lanes), image innermost, with borders of zeros that
neighbouring rows share (layout.py). Every offset and size in a step counts floats. A step is a row of integers, whose
columns program.py names; its part of the work is `part` of `parts`, by channels.
"""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from .copy import copy, enlarge, pack, pack_channels_last, place, split, unpack, unpack_channels_last
from .elementwise import combine, function
from .layer_norm import norm_of_channels
from .loops import FAST as _FAST
from .loops import clear, share
from .opcodes import COLUMNS, Opcode
from .opcodes import Column as at
from .pooling import mean, pool
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
    swap_if,
    weighted_sums,
)

_sums8, _sums7, _sums4, _sums2, _sums1 = (weighted_sums(count) for count in (8, 7, 4, 2, 1))
_sums2x4, _sums2x2 = weighted_sums(4, rows=2), weighted_sums(2, rows=2)
_shared, _shared1 = weighted_sums(TILE_VECTORS, TILE), weighted_sums(1, TILE)
_shared_rows = weighted_sums(TILE_VECTORS // 2, TILE, rows=2)
# Numbers that all threads see: jobs given and steps ended, each on a cache line of its own, and what each thread does.
GIVEN, ENDED, STATE = 0, 16, 32
ASLEEP, AWAKE, BUSY = 0, 1, 2
JOB = 17  # numbers in a job
LOOKS = 1_000_000  # for a job, about a millisecond, before a thread goes to sleep, from which it wakes slowly
WAKING = 100_000  # looks at whether a thread wakes, a few milliseconds, before a signal may come between
PATIENCE = 4096  # looks at whether the other threads are done, before one of them may need this core


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
    out, residual, size, first = step[at.OUT], step[at.RESIDUAL], step[at.OUT_PLANE], step[at.INDPTR]
    count, chunks, rows, wide = step[at.CHANNELS], step[at.CHUNKS], step[at.TILE_ROWS], step[at.TILE_WIDTH]
    pitch, pace, lines, span = step[at.IN_ROW_STRIDE], step[at.ROW_STRIDE], step[at.RUNS], step[at.RUN]
    low, high = share_of_rows(pointers, first, count, part, parts)
    where, values, nothing = pointer(offsets, 0), pointer(weights, step[at.VALUES]), pointer(biases, biases.size - 1)
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
                least = limits[step[at.SCALARS]] if ends else np.float32(-np.inf)
                most = limits[step[at.SCALARS] + 1] if ends else np.float32(np.inf)
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
                            step[at.TILE_SHAPE], x, where, values, begin, end, bias, near, more,
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
    out, residual, size = step[at.OUT], step[at.RESIDUAL], step[at.OUT_PLANE]
    pitch, pace, lines, span = step[at.IN_ROW_STRIDE], step[at.ROW_STRIDE], step[at.RUNS], step[at.RUN]
    rows, wide = step[at.TILE_ROWS], step[at.TILE_WIDTH]
    low, high = share(step[at.CHANNELS] // TILE, part, parts)
    least, most = limits[step[at.SCALARS]], limits[step[at.SCALARS] + 1]
    inside = residual == out
    adds = residual >= 0 and not inside
    other = residual if adds else out
    where, values = pointer(offsets, 0), pointer(weights, step[at.VALUES])
    for line in range(0, lines, rows):
        for block in range(0, span, wide):
            source, target = step[at.IN] + line * pitch + block, step[at.FIRST] + line * pace + block
            whole = line + rows <= lines and block + wide < span + WIDTH
            left = (min(span - block, wide) + WIDTH - 1) // WIDTH
            for tile in range(low, high):
                begin, end = pointers[step[at.INDPTR] + tile], pointers[step[at.INDPTR] + tile + 1]
                bias = pointer(biases, step[at.BIASES] + tile * TILE)
                place = target + tile * TILE * size
                for r in range(1 if whole else min(rows, lines - line)):
                    for i in range(1 if whole else left):
                        to = place + r * pace + i * WIDTH
                        x = pointer(buffers, source + r * pitch + i * WIDTH)
                        near, more = pointer(buffers, out + to), pointer(buffers, other + to)
                        shared_sums(
                            step[at.TILE_SHAPE] if whole else -1, x, where, values, begin, end, bias, near, more,
                            size, pitch, pace, inside, adds, least, most,
                        )  # fmt: skip
    clear(buffers, out, step, low * TILE, high * TILE)


@njit(**{**_FAST, "fastmath": True})
def dot(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Write one number for each output channel: the sum of its weights times the floats they are for. One image."""
    x, out, residual = step[at.IN], step[at.OUT], step[at.RESIDUAL]
    low, high = share_of_rows(pointers, step[at.INDPTR], step[at.CHANNELS], part, parts)
    least, most = limits[step[at.SCALARS]], limits[step[at.SCALARS] + 1]
    for channel in range(low, high):
        begin, end = pointers[step[at.INDPTR] + channel], pointers[step[at.INDPTR] + channel + 1]
        total = np.float32(0)
        if end > begin and offsets[end - 1] - offsets[begin] == end - begin - 1:
            first, values = np.uint64(x + np.int64(offsets[begin])), np.uint64(step[at.VALUES] + begin)
            for j in range(np.uint64(end - begin)):
                total += weights[values + j] * buffers[first + j]
        else:
            first, values, places = np.uint64(x), np.uint64(step[at.VALUES] + begin), np.uint64(begin)
            for j in range(np.uint64(end - begin)):
                total += weights[values + j] * buffers[first + np.uint64(offsets[places + j])]
        total += biases[step[at.BIASES] + channel]
        if residual >= 0:
            total += buffers[residual + channel]
        total = least if total < least else total
        buffers[out + channel] = most if total > most else total


@njit(**_FAST)
def _without_weights(step, buffers, limits, addresses, part, parts):
    kind = step[at.OPCODE]
    if kind == Opcode.DECIMATE:
        split(step, buffers, part, parts)
    elif kind == Opcode.MAX_POOL or kind == Opcode.AVG_POOL:
        pool(step, buffers, part, parts)
    elif kind == Opcode.MEAN:
        mean(step, buffers, part, parts)
    elif kind == Opcode.ACTIVATION:
        function(step, buffers, limits, part, parts)
    elif kind == Opcode.BINARY:
        combine(step, buffers, limits, part, parts)
    elif kind == Opcode.PAD_CROP:
        place(step, buffers, limits, part, parts)
    elif kind == Opcode.UPSAMPLE:
        enlarge(step, buffers, part, parts)
    elif kind == Opcode.COPY:
        copy(step, buffers, part, parts)
    elif kind == Opcode.PACK:
        pack(step, buffers, addresses, part, parts)
    elif kind == Opcode.UNPACK:
        unpack(step, buffers, addresses, part, parts)
    elif kind == Opcode.PACK_CHANNELS_LAST:
        pack_channels_last(step, buffers, addresses, part, parts)
    elif kind == Opcode.UNPACK_CHANNELS_LAST:
        unpack_channels_last(step, buffers, addresses, part, parts)


@njit(**_FAST)
def run(steps, buffers, offsets, weights, pointers, biases, limits, addresses, signals, base, part, parts):
    """Go through all steps, as `part` of `parts` threads that do so at once on the same buffers.

    Each step begins when all threads have ended the one before it: `base` is how many ends the signals told before.
    """
    for number in range(steps.shape[0]):
        step = steps[number]
        kind = step[at.OPCODE]
        if kind == Opcode.CONVOLVE:
            convolve(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == Opcode.CONVOLVE_TILES:
            convolve_tiles(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == Opcode.DOT:
            dot(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == Opcode.LAYER_NORM:
            norm_of_channels(step, buffers, weights, pointers, biases, limits, part, parts)
        else:
            _without_weights(step, buffers, limits, addresses, part, parts)
        if parts > 1:
            arrive(signals, ENDED)
            waits = 0
            while seen(signals, ENDED) < base + (number + 1) * parts:
                waits += 1
                if waits % PATIENCE == 0:
                    give_way()


@njit(**_FAST)
def perform(signals, job, part, parts):
    """Do a thread's part of a job: what `run` takes, addresses and sizes of the arrays one after the other, and `base`.

    It stays as it is until all threads have ended its last step.
    """
    run(
        carray(longs_at(job[0]), (job[1] // COLUMNS, COLUMNS)),
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


@njit(**_FAST)
def _claim(signals, parts, looks):
    """Make all other threads busy and return True; False, and none is, if one sleeps for that many looks."""
    for part in range(1, parts):
        waits = 0
        while not swap_if(signals, STATE + part, AWAKE, BUSY):
            waits += 1
            if waits > looks:
                for earlier in range(1, part):
                    exchange(signals, STATE + earlier, AWAKE)
                return False
            if waits % PATIENCE == 0:
                give_way()
    return True


@njit(**_FAST)
def _next_job(signals, part, done):
    """Wait for a job beyond those done and return True; False, and the thread is asleep, if none comes for a while."""
    looks = 0
    while seen(signals, GIVEN) == done:
        looks += 1
        if looks % PATIENCE == 0:
            give_way()
        # A thread that is busy waits for the job that is to come.
        if looks >= LOOKS and swap_if(signals, STATE + part, AWAKE, ASLEEP):
            return False
    return True


@njit(**_FAST)
def enter(signals, job, part, parts, looks):
    """Lead all threads through a job, as part 0, or do another part of every job until none comes for a while.

    Returns whether the job is done: it is not, and nothing has begun, if a thread is asleep for that many looks. A
    whole job is one call, so that no signal handler, which Python runs between its own steps, can tear it.
    """
    done = seen(signals, GIVEN)  # while this thread is asleep, or has not given it yet, there is no job
    if part > 0:
        exchange(signals, STATE + part, AWAKE)
    elif not _claim(signals, parts, looks):
        return False
    elif parts > 1:
        # None of them reads the last job any more: all have ended its last step.
        job[16] = seen(signals, ENDED)
        arrive(signals, GIVEN)
    while part == 0 or _next_job(signals, part, done):
        perform(signals, job, part, parts)
        done += 1
        if part == 0:
            for other in range(1, parts):
                exchange(signals, STATE + other, AWAKE)
            return True
    return True


SIGNATURE = types.boolean(types.int64[::1], types.int64[::1], types.int64, types.int64, types.int64)
