"""Weights as packed rows (CSR): the kept entries of each output channel, as offsets of their inputs and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codegen.executable import ACCUMULATORS, refusal
from ..kernels.planes import Planes
from ..kernels.simd import WIDTH
from .tiling import Tiling, generated_tiling

CACHE = 40_000  # bytes of inputs that a chunk may read for one tile; measured, with 32 KB of L1 cache
LEAST = 16  # entries of an output channel in a chunk: with fewer, storing sums costs more than the cache saves
DENSE, SHORT = 0.8, 1200  # beyond this density, for rows longer than this, tiles share as much in less code


@dataclass(frozen=True)
class PackedRows:
    """CSR: entries indptr[i] .. indptr[i + 1] are those of output channel i. Offsets, in floats, are relative to
    `base`, the position of the first entry of the first window relative to the input buffer's first pixel.
    """

    indptr: np.ndarray[Any, np.dtype[np.int64]]
    offsets: np.ndarray[Any, np.dtype[np.uint32]]
    values: np.ndarray[Any, np.dtype[np.float32]]
    biases: np.ndarray[Any, np.dtype[np.float32]]
    base: int
    dense_size: int  # entries of the dense weight
    chunks: int = 1  # of input channels; with several, row c * outputs + i holds what output i has in chunk c
    stride: tuple[int, int] = (1, 1)  # in pixels of the input, from output to output


@dataclass(frozen=True)
class Place:
    """The inputs of a convolution: `shifts[ky][kx]` is in floats from `base`, in plane 0 of the phase.

    `planes` is the layout of the inputs: those of the image, read with `stride`, or one for each of `phases` of a
    stride, whose pixels form planes, one phase after the other, and are read one by one.
    """

    planes: Planes
    phases: tuple[tuple[int, int], ...]
    shifts: np.ndarray[Any, np.dtype[np.int64]]
    base: int
    stride: tuple[int, int] = (1, 1)


def whole_images(
    source: Planes, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Place:
    """Return the inputs of each entry of the kernel in the image's own planes, padding included."""
    rows, columns = ([k * dilation[d] - padding[d] for k in range(kernel[d])] for d in (0, 1))
    shifts = np.add.outer(np.array(rows) * source.row_stride, np.array(columns) * source.batch)
    return Place(source, (), shifts - shifts.min(), int(shifts.min()), (stride[0], stride[1]))


def split_for_strides(
    source: Planes,
    out: Planes,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Place:
    """Return the inputs of each entry of the kernel in the phases of a stride, each read with stride 1."""
    steps = [[k * dilation[d] - padding[d] for k in range(kernel[d])] for d in (0, 1)]
    phase = [[step % stride[d] for step in steps[d]] for d in (0, 1)]
    moved = [[step // stride[d] for step in steps[d]] for d in (0, 1)]
    sizes, ends = (source.height, source.width), (out.height, out.width)
    extent, pad = [], 0
    for d in (0, 1):
        there = max(-(-(sizes[d] - part) // stride[d]) for part in phase[d])
        extent.append(min(there, ends[d] + max(moved[d])))
        pad = max(pad, -min(moved[d]), ends[d] + max(moved[d]) - extent[d])
    # With the output's row stride the whole plane is one contiguous run.
    pad = max(pad, out.width + out.pad - extent[1])
    phases = sorted({(a, b) for a in phase[0] for b in phase[1]})
    planes = Planes(source.channels * len(phases), extent[0], extent[1], pad, source.batch)
    shifts = np.empty((kernel[0], kernel[1]), dtype=np.int64)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            plane = phases.index((phase[0][y], phase[1][x])) * source.channels
            shifts[y, x] = plane * planes.size + moved[0][y] * planes.row_stride + moved[1][x] * planes.batch
    return Place(planes, tuple(phases), shifts - shifts.min(), int(shifts.min()))


def convolution_rows(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, place: Place, groups: int
) -> PackedRows:
    """Return the rows of a convolution's weight [out, in / groups, row, column], a following norm folded in."""
    outputs, inputs = weight.shape[:2]
    group = np.arange(outputs) // (outputs // groups)
    values, offset = _scaled(weight, bias, scale, shift)
    # A zero weight stays zero, also where a norm's scale is not finite.
    kept = (weight != 0).numpy().reshape(outputs, -1)
    row, column = np.nonzero(kept)
    channel, entry = np.divmod(column, place.shifts.size)
    offsets = (group[row] * inputs + channel) * place.planes.size + place.shifts.reshape(-1)[entry]
    chosen = values.numpy().reshape(outputs, -1)[row, column]
    return replace(_rows(kept, offsets, chosen, offset, place.base), stride=place.stride)


def linear_rows(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, source: Planes
) -> PackedRows:
    """Return the rows of a linear layer's weight [out, in] for inputs that are flattened pixels, channel by channel.

    A following norm is folded in.
    """
    channel, pixel = np.divmod(np.arange(weight.shape[1]), source.height * source.width)
    y, x = np.divmod(pixel, source.width)
    place = channel * source.size + y * source.row_stride + x * source.batch
    values, offset = _scaled(weight, bias, scale, shift)
    kept = (weight != 0).numpy()
    row, column = np.nonzero(kept)
    return _rows(kept, place[column], values.numpy()[row, column], offset, 0)


def one_per_plane(scale: Tensor, shift: Tensor, source: Planes) -> PackedRows:
    """Return the rows of a scale and a shift for each plane."""
    count = source.channels
    offsets = (np.arange(count) * source.size).astype(np.uint32)
    indptr = np.arange(count + 1, dtype=np.int64)
    return PackedRows(indptr, offsets, scale.float().numpy(), shift.float().numpy(), 0, count)


def chunked(rows: PackedRows, source: Planes, tile: Tiling) -> PackedRows:
    """Return the rows in chunks of input channels whose inputs for a tile fit the L1 cache.

    The sums of a tile are stored between chunks, which pays off if chunks have enough entries: otherwise, and if one
    chunk holds all, the rows are unchanged.
    """
    outputs, count = len(rows.biases), len(rows.offsets)
    if not count:
        return rows
    shift = rows.offsets % source.size
    lines = len(np.unique(shift // source.row_stride)) + tile.rows - 1
    read = lines * (tile.vectors * WIDTH + int((shift % source.row_stride).max())) * rows.values.itemsize
    channels = max(CACHE // read, -(-LEAST * outputs * source.channels // count))
    chunks = -(-source.channels // channels)
    if chunks == 1:
        return rows
    chunk = rows.offsets // source.size // -(-source.channels // chunks)
    row = chunk * outputs + np.repeat(np.arange(outputs), np.diff(rows.indptr))
    order = np.argsort(row, kind="stable")
    indptr = np.searchsorted(row[order], np.arange(chunks * outputs + 1)).astype(np.int64)
    return replace(rows, indptr=indptr, offsets=rows.offsets[order], values=rows.values[order], chunks=chunks)


def reads_of(rows: PackedRows) -> int:
    """Return how many input vectors generated code reads for one vector of all outputs, each once per group."""
    group = np.repeat(np.arange(len(rows.biases)) // ACCUMULATORS, np.diff(rows.indptr))
    return len(np.unique(group << 32 | rows.offsets.astype(np.int64)))


def generates(rows: PackedRows, out: Planes, source: Planes) -> bool:
    """Return whether generated code for these rows can run here and is faster than a loop."""
    tile = generated_tiling(out, source, rows.stride)
    if refusal() is not None or tile is None:
        return False
    outputs, count = len(rows.biases), len(rows.offsets)
    vectors = -(-out.span // WIDTH) if tile.linear else out.height * out.row // WIDTH
    if count > DENSE * rows.dense_size and rows.dense_size > SHORT * outputs:
        return False
    reads = reads_of(rows)
    # Saved reads must outweigh the code to fetch: 7 bytes and a value for each entry, 10 bytes for each read.
    return vectors * (count - reads) > 2 * count + 4 * reads


def tiled(rows: PackedRows, tile: int) -> tuple[PackedRows, PackedRows] | None:
    """Return rows in tiles, and the remaining rows; None if sharing inputs saves no time.

    `tile` consecutive output channels share the offsets of all their entries; the weights of an offset are contiguous.
    An entry that a channel lacks is a zero in the tile.
    """
    outputs = len(rows.biases)
    tiles = outputs // tile
    whole = tiles * tile
    owner = np.repeat(np.arange(outputs), np.diff(rows.indptr))
    ours = owner < whole
    keys = (owner[ours] // tile) * 2**32 + rows.offsets[ours]
    shared, inverse = np.unique(keys, return_inverse=True)
    # Each multiply-add of a tile takes about half the time, since one input is read for all.
    if 2 * len(keys) < tile * len(shared):
        return None
    weights = np.zeros((len(shared), tile), dtype=np.float32)
    weights[inverse, owner[ours] % tile] = rows.values[ours]
    indptr = np.searchsorted(shared, np.arange(tiles + 1) * 2**32).astype(np.int64)
    offsets = (shared % 2**32).astype(np.uint32)
    each = rows.dense_size // outputs
    front = PackedRows(indptr, offsets, weights.reshape(-1), rows.biases[:whole], rows.base, each * whole)
    cut = int(rows.indptr[whole])
    rest, left = rows.indptr[whole:] - cut, each * (outputs - whole)
    return front, PackedRows(rest, rows.offsets[cut:], rows.values[cut:], rows.biases[whole:], rows.base, left)


def _scaled(weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias with a norm's scale and shift folded in, rounded once."""
    offset = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    if scale is None or shift is None:
        return weight, offset.float()
    return (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).float(), (offset * scale + shift).float()


def _rows(kept: Any, offsets: Any, weights: Any, biases: Tensor, base: int) -> PackedRows:
    if offsets.size and offsets.max() >= 2**32:
        raise ValueError("an activation is too large for offsets of 32 bits")
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    if not _rise(indptr, offsets):
        keys = np.repeat(np.arange(len(kept)) * 2**32, np.diff(indptr)) + offsets
        shared, inverse = np.unique(keys, return_inverse=True)
        indptr = np.searchsorted(shared, np.arange(len(kept) + 1) * 2**32).astype(np.int64)
        offsets, weights = shared % 2**32, np.bincount(inverse, weights)
    return PackedRows(
        indptr,
        offsets.astype(np.uint32),
        np.ascontiguousarray(weights, dtype=np.float32),
        biases.float().numpy(),
        base,
        kept.size,
    )


def _rise(indptr: Any, offsets: Any) -> bool:
    """Return whether the offsets of each row strictly increase: first and last then show whether they are contiguous.

    With strides they may not; and two entries may read the same place of the padding between two rows.
    """
    rises = offsets[1:] > offsets[:-1]
    begins = indptr[(indptr > 0) & (indptr < len(offsets))]
    rises[begins - 1] = True
    return bool(rises.all())
