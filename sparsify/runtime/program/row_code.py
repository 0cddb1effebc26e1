"""Machine code for packed rows: weights are operands of instructions, so that any pattern can share its inputs.

The sums of a group of output channels are in registers, one vector each. An input vector is read once for the whole
group, and multiplied by the nonzero weights of all its rows (register blocking over output channels). Input channels
come in chunks that fit the L1 cache. A block, one chunk of one group, is a function

    void block(float *x, float *out, float *values, float *residual, int64_t vectors)   // System V calling convention

which loops over vectors: contiguous ones of the output, of the input those that a stride reads. `values` holds its
operands in order: biases, weights, bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto
from itertools import pairwise
from typing import Any

import numpy as np

from ..codegen.executable import ACCUMULATORS
from ..kernels.planes import Planes
from ..kernels.simd import WIDTH
from ..lowering.ir import UNBOUNDED
from ..lowering.packed_rows import PackedRows
from . import avx512 as cpu

Array = np.ndarray[Any, np.dtype[Any]]

FIRST_CACHE = 18_000  # bytes of inputs that a block may read for one vector
_VALUES = 256  # in reach of a displacement of one byte
_LONGEST = 10  # bytes of an instruction
_FLOAT = 4  # bytes


class _Phase(IntEnum):
    """The phases of a block, in order."""

    RESUME = 0
    BIAS = auto()
    SUM = auto()
    RESIDUAL = auto()
    LOW = auto()
    AT_LEAST = auto()
    HIGH = auto()
    AT_MOST = auto()
    STORE = auto()


@dataclass(frozen=True)
class RowCode:
    """Code and values of all blocks, group by group, and the start of each block's."""

    code: bytes
    starts: Array
    values: Array
    first_values: Array
    groups: int
    chunks: int


@dataclass(frozen=True)
class _Items:
    """Instructions: block, sort key within the block, bytes, their number, and the value read, if any."""

    block: Array
    key: Array
    code: Array
    length: Array
    value: Array
    reads: Array


def group_count(channels: int) -> int:
    """Return the number of groups of output channels: as few as the registers allow."""
    return -(-channels // ACCUMULATORS)


def row_code(
    rows: PackedRows, source: Planes, out: Planes, scalars: tuple[float, float], inside: bool, adds: bool
) -> RowCode:
    """Return the code of packed rows without chunks.

    The sums start from the old output if `inside`; a residual is added at the end if `adds`; then they are clamped to
    `scalars`. Raises ValueError if a plane is out of reach of a displacement.
    """
    outputs = len(rows.biases)
    if max(int(rows.offsets.max(initial=0)), outputs * out.size) * _FLOAT >= 2**31:
        raise ValueError("an activation is too large for displacements of 32 bits")
    groups, chunks = group_count(outputs), _chunks(rows, source)
    edges = np.arange(groups + 1) * outputs // groups
    group = np.repeat(np.arange(groups), np.diff(edges))
    k = np.arange(outputs) - edges[group]
    plane = k * out.size * _FLOAT
    begin, end = group * chunks, group * chunks + chunks - 1
    owner = np.repeat(np.arange(outputs), np.diff(rows.indptr))
    chunk = (rows.offsets // source.size).astype(np.int64) // -(-source.channels // chunks)
    parts = _sums(rows, begin[owner] + chunk, k[owner])
    for number in range(chunks):
        if number > 0 or inside:
            parts.append(_items(_Phase.RESUME, begin + number, k, cpu.RESUME[k], place=plane))
        parts.append(_items(_Phase.STORE, begin + number, k, cpu.STORE[k], place=plane))
    parts.append(_items(_Phase.BIAS, begin, k, (cpu.ADD_BIAS if inside else cpu.SET_BIAS)[k], value=rows.biases))
    if adds:
        parts.append(_items(_Phase.RESIDUAL, end, k, cpu.ADD_RESIDUAL[k], place=plane))
    tables = (cpu.AT_LEAST, cpu.AT_MOST)
    for phase, bound, free, table in zip((_Phase.LOW, _Phase.HIGH), scalars, UNBOUNDED, tables, strict=True):
        if bound != free:
            last = np.unique(end)
            value = np.full(groups, bound, dtype=np.float32)
            parts.append(_items(phase, last, last * 0, np.repeat(cpu.SET_BOUND, groups, 0), value=value))
            parts.append(_items(_Phase(phase + 1), end, k, table[k]))
    return _assembled(parts, groups, chunks, rows.stride[1])


def _chunks(rows: PackedRows, source: Planes) -> int:
    """Return the number of chunks of input channels, so that the vectors read by one fit the L1 cache."""
    lines = len(np.unique(rows.offsets % source.size // WIDTH))
    channels = max(FIRST_CACHE // (max(lines, 1) * WIDTH * _FLOAT), 1)
    chunks = -(-source.channels // channels)
    # Equal sizes, without an empty chunk.
    return -(-source.channels // -(-source.channels // chunks))


def _sums(rows: PackedRows, block: Array, k: Array) -> list[_Items]:
    """Return one read of each input of a block, followed by its multiply-adds."""
    offsets = rows.offsets.astype(np.int64)
    where, inputs = np.divmod(np.unique(block << 32 | offsets), 2**32)
    read = np.repeat(cpu.READ, len(inputs), 0)
    reads = _items(_Phase.SUM, where, inputs << 6, read, place=inputs * _FLOAT)
    sums = _items(_Phase.SUM, block, offsets << 6 | (k + 1), cpu.MULTIPLY_ADD[k], value=rows.values)
    return [reads, sums]


def _items(
    phase: _Phase, block: Array, order: Array, code: Array, place: Array | None = None, value: Array | None = None
) -> _Items:
    """Return instructions of one kind, each with a displacement, or a value whose place is set later."""
    count, length = code.shape
    whole = np.zeros((count, _LONGEST), dtype=np.uint8)
    whole[:, :length] = code
    if place is not None:
        whole[:, length : length + 4] = place.astype("<i4")[:, None].view(np.uint8)
        length += 4
    elif value is not None:
        length += 1
    reads = np.full(count, value is not None)
    key = np.int64(phase) << 38 | order
    return _Items(block, key, whole, np.full(count, length), np.zeros(count) if value is None else value, reads)


def _assembled(parts: list[_Items], groups: int, chunks: int, stride: int) -> RowCode:
    """Return the blocks' instructions in order, with the place of each value and the loop around them.

    `stride` is in vectors of the input.
    """
    block = np.concatenate([one.block for one in parts])
    order = np.argsort(block << 42 | np.concatenate([one.key for one in parts]))
    code, length, values, reads = (
        np.concatenate([getattr(one, name) for one in parts])[order] for name in ("code", "length", "value", "reads")
    )
    block = block[order]
    edges = np.searchsorted(block, np.arange(groups * chunks + 1))
    before = np.concatenate([[0], np.cumsum(reads)])
    index = before[:-1] - before[edges[block]]
    code[reads, length[reads] - 1] = (index[reads] % _VALUES - _VALUES // 2).astype(np.int8).view(np.uint8)
    moves = np.flatnonzero(reads & (index % _VALUES == 0))
    step = np.zeros((len(moves), _LONGEST), dtype=np.uint8)
    step[:, :2] = list(cpu.NEXT_VALUES)
    step[:, 2:6] = (np.where(index[moves] == 0, _VALUES // 2, _VALUES) * _FLOAT).astype("<i4")[:, None].view(np.uint8)
    code, length = np.insert(code, moves, step, axis=0), np.insert(length, moves, 6)
    text = code[np.arange(_LONGEST) < length[:, None]].tobytes()
    ends = np.concatenate([[0], np.cumsum(length)])[edges + np.searchsorted(moves, edges)]
    starts, found = [], bytearray()
    after = cpu.NEXT_INPUT + (stride * WIDTH * _FLOAT).to_bytes(4, "little") + cpu.NEXT_VECTOR
    for one, other in pairwise(ends.tolist()):
        starts.append(len(found))
        found += cpu.BEGIN + text[one:other] + after
        found += (starts[-1] - len(found) - 4).to_bytes(4, "little", signed=True) + cpu.END
    return RowCode(bytes(found), np.array(starts), values[reads].astype(np.float32), before[edges[:-1]], groups, chunks)
