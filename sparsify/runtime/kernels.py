"""The steps of a program in machine code: one function each, and `run`, which goes through a table of steps.

A buffer holds *planes*: for each channel the pixels of all images (lanes), image innermost, with borders of zeros that
neighbouring rows share (layout.py). Every offset and size in a step counts floats. A step is a row of integers, whose
columns program.py names; its part of the work is `part` of `parts`, by channels.
"""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from . import columns as at
from .moving import copy, enlarge, pack, pack_channels_last, place, split, unpack, unpack_channels_last
from .norms import norm_of_channels
from .pointwise import combine, function
from .poolings import mean, pool
from .primitives import FAST as _FAST
from .primitives import clear, share
from .simd import TILE, TILE_VECTORS, WIDTH, arrive, give_way, pointer, seen, weighted_sums

_sums8, _sums4, _sums2, _sums1 = (weighted_sums(count) for count in (8, 4, 2, 1))
_tiles, _tile = weighted_sums(TILE_VECTORS, TILE), weighted_sums(1, TILE)
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


@njit(**_FAST)
def convolve(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Write planes that are weighted sums of shifted input planes, and a bias; then a residual, then a clamp."""
    x, out, residual, size = step[at.IN], step[at.OUT], step[at.RESIDUAL], step[at.OUT_SIZE]
    count, chunks, first = step[at.CHANNELS], step[at.CHUNKS], step[at.POINTERS]
    low, high = share_of_rows(pointers, first, count, part, parts)
    where, values = pointer(offsets, 0), pointer(weights, step[at.WEIGHTS])
    other = residual if residual >= 0 else out
    for line in range(step[at.LINES]):
        source, target = x + line * step[at.IN_LINE], step[at.FIRST] + line * step[at.OUT_LINE]
        for block in range(0, step[at.SPAN], step[at.BLOCK]):
            left = (min(step[at.SPAN] - block, step[at.BLOCK]) + WIDTH - 1) // WIDTH
            for chunk in range(chunks):
                # What a chunk of input channels has in this block stays in the cache for all outputs.
                resumes, ends = chunk > 0, chunk == chunks - 1
                adds = ends and residual >= 0
                least = limits[step[at.LIMITS]] if ends else np.float32(-np.inf)
                most = limits[step[at.LIMITS] + 1] if ends else np.float32(np.inf)
                for channel in range(low, high):
                    row = first + chunk * count + channel
                    begin, end = pointers[row], pointers[row + 1]
                    if begin == end and resumes and not ends:
                        continue
                    bias, place = pointer(biases, step[at.BIASES] + channel), target + block + channel * size
                    i = 0
                    if left >= 8:
                        read, write = pointer(buffers, source + block), pointer(buffers, out + place)
                        more = pointer(buffers, other + place)
                        _sums8(read, where, values, begin, end, bias, write, more, size, resumes, adds, least, most)
                        continue
                    if left & 4:
                        read, write = pointer(buffers, source + block), pointer(buffers, out + place)
                        more = pointer(buffers, other + place)
                        _sums4(read, where, values, begin, end, bias, write, more, size, resumes, adds, least, most)
                        i = 4 * WIDTH
                    if left & 2:
                        read, write = pointer(buffers, source + block + i), pointer(buffers, out + place + i)
                        more = pointer(buffers, other + place + i)
                        _sums2(read, where, values, begin, end, bias, write, more, size, resumes, adds, least, most)
                        i += 2 * WIDTH
                    if left & 1:
                        read, write = pointer(buffers, source + block + i), pointer(buffers, out + place + i)
                        more = pointer(buffers, other + place + i)
                        _sums1(read, where, values, begin, end, bias, write, more, size, resumes, adds, least, most)
    clear(buffers, out, step, low, high)


@njit(**_FAST)
def convolve_tiles(step, buffers, offsets, weights, pointers, biases, limits, part, parts):
    """Do what `convolve` does for weights with few zeros: TILE output planes at once share what they read."""
    x, out, residual, size = step[at.IN], step[at.OUT], step[at.RESIDUAL], step[at.OUT_SIZE]
    low, high = share(step[at.CHANNELS] // TILE, part, parts)
    least, most = limits[step[at.LIMITS]], limits[step[at.LIMITS] + 1]
    adds = residual >= 0
    other = residual if adds else out
    where, values = pointer(offsets, 0), pointer(weights, step[at.WEIGHTS])
    for line in range(step[at.LINES]):
        source, target = x + line * step[at.IN_LINE], step[at.FIRST] + line * step[at.OUT_LINE]
        for block in range(0, step[at.SPAN], TILE_VECTORS * WIDTH):
            left = (step[at.SPAN] - block + WIDTH - 1) // WIDTH
            for tile in range(low, high):
                begin, end = pointers[step[at.POINTERS] + tile], pointers[step[at.POINTERS] + tile + 1]
                bias, place = pointer(biases, step[at.BIASES] + tile * TILE), target + block + tile * TILE * size
                if left >= TILE_VECTORS:
                    read, write = pointer(buffers, source + block), pointer(buffers, out + place)
                    extra = pointer(buffers, other + place)
                    _tiles(read, where, values, begin, end, bias, write, extra, size, False, adds, least, most)
                else:
                    for i in range(0, left * WIDTH, WIDTH):
                        read, write = pointer(buffers, source + block + i), pointer(buffers, out + place + i)
                        extra = pointer(buffers, other + place + i)
                        _tile(read, where, values, begin, end, bias, write, extra, size, False, adds, least, most)
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
def _without_weights(step, buffers, limits, addresses, part, parts):
    kind = step[at.KIND]
    if kind == at.SPLIT:
        split(step, buffers, part, parts)
    elif kind == at.LARGEST or kind == at.AVERAGE:
        pool(step, buffers, part, parts)
    elif kind == at.MEAN:
        mean(step, buffers, part, parts)
    elif kind == at.FUNCTION_OF:
        function(step, buffers, limits, part, parts)
    elif kind == at.COMBINE:
        combine(step, buffers, limits, part, parts)
    elif kind == at.PLACE:
        place(step, buffers, limits, part, parts)
    elif kind == at.ENLARGE:
        enlarge(step, buffers, part, parts)
    elif kind == at.COPY:
        copy(step, buffers, part, parts)
    elif kind == at.PACK:
        pack(step, buffers, addresses, part, parts)
    elif kind == at.UNPACK:
        unpack(step, buffers, addresses, part, parts)
    elif kind == at.PACK_CHANNELS_LAST:
        pack_channels_last(step, buffers, addresses, part, parts)
    elif kind == at.UNPACK_CHANNELS_LAST:
        unpack_channels_last(step, buffers, addresses, part, parts)


@njit(**_FAST)
def run(steps, buffers, offsets, weights, pointers, biases, limits, addresses, counters, part, parts):
    """Go through all steps, as `part` of `parts` threads that do so at once on the same buffers."""
    for number in range(steps.shape[0]):
        step = steps[number]
        kind = step[at.KIND]
        if kind == at.CONVOLVE:
            convolve(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.CONVOLVE_TILES:
            convolve_tiles(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.DOT:
            dot(step, buffers, offsets, weights, pointers, biases, limits, part, parts)
        elif kind == at.NORM:
            norm_of_channels(step, buffers, weights, pointers, biases, limits, part, parts)
        else:
            _without_weights(step, buffers, limits, addresses, part, parts)
        if parts > 1:
            arrive(counters, number)
            waits = 0
            while seen(counters, number) < parts:
                waits += 1
                if waits % PATIENCE == 0:
                    give_way()
