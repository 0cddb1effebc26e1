"""The kernels for packed rows (CSR): sparse convolutions and linear layers, with bias, residual and clamp fused in."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .loops import FAST as _FAST
from .loops import clear, share
from .opcodes import Column as at
from .simd import TILE, TILE_VECTORS, WIDTH, pointer, weighted_sums

_sums8, _sums7, _sums4, _sums2, _sums1 = (weighted_sums(count) for count in (8, 7, 4, 2, 1))
_sums2x4, _sums2x2 = weighted_sums(4, rows=2), weighted_sums(2, rows=2)
_shared, _shared1 = weighted_sums(TILE_VECTORS, TILE), weighted_sums(1, TILE)
_shared_rows = weighted_sums(TILE_VECTORS // 2, TILE, rows=2)


@njit(**_FAST)
def share_of_rows(indptr, first, count, part, parts):
    """Return the range of output channels of `part`, balanced by values plus 8 for each channel."""
    begin, total = indptr[first], indptr[first + count] - indptr[first] + 8 * count
    edges = (0, 0)
    for side in range(2):
        wanted = total * (part + side) // parts
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if indptr[first + middle] - begin + 8 * middle < wanted:
                low = middle + 1
            else:
                high = middle
        edges = (edges[1], low)
    return edges


@njit(**_FAST, inline="always")
def tile_sums(shape, x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high):
    """Compute one tile of tiling.SHAPES."""
    if shape == 0:
        _sums8(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    elif shape == 1:
        _sums7(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    elif shape == 2:
        _sums2x4(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    else:
        _sums2x2(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)


@njit(**_FAST, inline="always")
def shared_sums(
    shape, x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high
):
    """Compute one tile of tiling.SHARED_SHAPES, or one vector."""
    if shape == 0:
        _shared(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    elif shape == 1:
        _shared_rows(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    else:
        _shared1(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)


@njit(**_FAST, inline="always")
def piece_sums(
    vectors, x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high
):
    """Compute 4, 2 or 1 vectors of one row, and return how many."""
    if vectors >= 4:
        _sums4(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
        return 4
    if vectors >= 2:
        _sums2(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
        return 2
    _sums1(x, where, entries, begin, end, bias, out, other, size, in_row, out_row, resumes, adds, low, high)
    return 1


@njit(**_FAST)
def convolve(op, buffers, offsets, values, indptr, biases, scalars, part, parts):
    """Write planes that are weighted sums of shifted input planes plus a bias and a residual, clamped.

    If the residual is in the output's own place, the sums start from it.
    """
    out, residual, size, first = op[at.OUT], op[at.RESIDUAL], op[at.OUT_PLANE], op[at.INDPTR]
    count, chunks, rows, wide = op[at.CHANNELS], op[at.CHUNKS], op[at.TILE_ROWS], op[at.TILE_WIDTH]
    in_row, out_row, lines, span = op[at.IN_ROW_STRIDE], op[at.ROW_STRIDE], op[at.RUNS], op[at.RUN]
    low, high = share_of_rows(indptr, first, count, part, parts)
    where, entries, nothing = pointer(offsets, 0), pointer(values, op[at.VALUES]), pointer(biases, biases.size - 1)
    inside = residual == out
    other = residual if residual >= 0 else out
    for line in range(0, lines, rows):
        for block in range(0, span, wide):
            source, target = op[at.IN] + line * in_row + block, op[at.FIRST] + line * out_row + block
            whole = line + rows <= lines and block + wide < span + WIDTH
            left = (min(span - block, wide) + WIDTH - 1) // WIDTH
            for chunk in range(chunks):
                # The block of a chunk of input channels stays in the cache for all outputs.
                ends = chunk == chunks - 1
                resumes, adds = inside or chunk > 0, ends and residual >= 0 and not inside
                clamp_min = scalars[op[at.SCALARS]] if ends else np.float32(-np.inf)
                clamp_max = scalars[op[at.SCALARS] + 1] if ends else np.float32(np.inf)
                for channel in range(low, high):
                    row = first + chunk * count + channel
                    begin, end = indptr[row], indptr[row + 1]
                    if begin == end and chunk > 0 and not ends:
                        continue
                    bias = nothing if chunk else pointer(biases, op[at.BIASES] + channel)
                    place = target + channel * size
                    if whole:
                        x, near = pointer(buffers, source), pointer(buffers, out + place)
                        more = pointer(buffers, other + place)
                        tile_sums(
                            op[at.TILE_SHAPE], x, where, entries, begin, end, bias, near, more,
                            size, in_row, out_row, resumes, adds, clamp_min, clamp_max,
                        )  # fmt: skip
                        continue
                    for r in range(min(rows, lines - line)):
                        i = 0
                        while i < left:
                            to = place + r * out_row + i * WIDTH
                            x = pointer(buffers, source + r * in_row + i * WIDTH)
                            near, more = pointer(buffers, out + to), pointer(buffers, other + to)
                            i += piece_sums(
                                left - i, x, where, entries, begin, end, bias, near, more,
                                size, in_row, out_row, resumes, adds, clamp_min, clamp_max,
                            )  # fmt: skip
    clear(buffers, out, op, low, high)


@njit(**_FAST)
def convolve_tiles(op, buffers, offsets, values, indptr, biases, scalars, part, parts):
    """As `convolve`, for weights with few zeros: TILE output planes at a time share their inputs."""
    out, residual, size = op[at.OUT], op[at.RESIDUAL], op[at.OUT_PLANE]
    in_row, out_row, lines, span = op[at.IN_ROW_STRIDE], op[at.ROW_STRIDE], op[at.RUNS], op[at.RUN]
    rows, wide = op[at.TILE_ROWS], op[at.TILE_WIDTH]
    low, high = share(op[at.CHANNELS] // TILE, part, parts)
    clamp_min, clamp_max = scalars[op[at.SCALARS]], scalars[op[at.SCALARS] + 1]
    inside = residual == out
    adds = residual >= 0 and not inside
    other = residual if adds else out
    where, entries = pointer(offsets, 0), pointer(values, op[at.VALUES])
    for line in range(0, lines, rows):
        for block in range(0, span, wide):
            source, target = op[at.IN] + line * in_row + block, op[at.FIRST] + line * out_row + block
            whole = line + rows <= lines and block + wide < span + WIDTH
            left = (min(span - block, wide) + WIDTH - 1) // WIDTH
            for tile in range(low, high):
                begin, end = indptr[op[at.INDPTR] + tile], indptr[op[at.INDPTR] + tile + 1]
                bias = pointer(biases, op[at.BIASES] + tile * TILE)
                place = target + tile * TILE * size
                for r in range(1 if whole else min(rows, lines - line)):
                    for i in range(1 if whole else left):
                        to = place + r * out_row + i * WIDTH
                        x = pointer(buffers, source + r * in_row + i * WIDTH)
                        near, more = pointer(buffers, out + to), pointer(buffers, other + to)
                        shared_sums(
                            op[at.TILE_SHAPE] if whole else -1, x, where, entries, begin, end, bias, near, more,
                            size, in_row, out_row, inside, adds, clamp_min, clamp_max,
                        )  # fmt: skip
    clear(buffers, out, op, low * TILE, high * TILE)


@njit(**{**_FAST, "fastmath": True})
def dot(op, buffers, offsets, values, indptr, biases, scalars, part, parts):
    """Write one number for each output channel, the dot product of its values and their inputs. One image."""
    x, out, residual = op[at.IN], op[at.OUT], op[at.RESIDUAL]
    low, high = share_of_rows(indptr, op[at.INDPTR], op[at.CHANNELS], part, parts)
    clamp_min, clamp_max = scalars[op[at.SCALARS]], scalars[op[at.SCALARS] + 1]
    for channel in range(low, high):
        begin, end = indptr[op[at.INDPTR] + channel], indptr[op[at.INDPTR] + channel + 1]
        total = np.float32(0)
        if end > begin and offsets[end - 1] - offsets[begin] == end - begin - 1:
            first, entries = np.uint64(x + np.int64(offsets[begin])), np.uint64(op[at.VALUES] + begin)
            for j in range(np.uint64(end - begin)):
                total += values[entries + j] * buffers[first + j]
        else:
            first, entries, places = np.uint64(x), np.uint64(op[at.VALUES] + begin), np.uint64(begin)
            for j in range(np.uint64(end - begin)):
                total += values[entries + j] * buffers[first + np.uint64(offsets[places + j])]
        total += biases[op[at.BIASES] + channel]
        if residual >= 0:
            total += buffers[residual + channel]
        total = clamp_min if total < clamp_min else total
        buffers[out + channel] = clamp_max if total > clamp_max else total
