"""Assembling the arrays of `interpreter.run`: a table of instructions, packed weights, and the place of each buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from ..codegen.executable import Executable
from ..kernel_errors import blamed_on
from ..kernels.opcodes import COLUMNS, Column, Opcode
from ..kernels.planes import ALIGNMENT, Planes
from ..kernels.simd import WIDTH
from ..lowering.ir import Call, Instruction
from ..lowering.tiling import SHAPES, SHARED_SHAPES, Tiling, generated_tiling, tiling
from .pool import Pool

Array = np.ndarray[Any, Any]
SECOND_CACHE = 600_000  # bytes of inputs that generated code processes, block by block, before the next ones
_FLOAT = 4  # bytes
AT_ONCE = 16  # vectors that a block processes at once, at least
PACKS, UNPACKS = (Opcode.PACK, Opcode.PACK_CHANNELS_LAST), (Opcode.UNPACK, Opcode.UNPACK_CHANNELS_LAST)


@dataclass(frozen=True)
class Segment:
    """Consecutive instructions: rows of the table, and the torch tensors that they read and write."""

    table: Array
    instructions: tuple[Instruction, ...]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """The name of its first instruction with weights, else of its first."""
        return next((one.name for one in self.instructions if one.rows is not None), self.instructions[0].name)


@dataclass(frozen=True)
class Program:
    """Segments and calls in order, the arrays that all segments share, and the floats that its buffers take."""

    parts: tuple[Segment | Call, ...]
    offsets: Array
    values: Array
    indptr: Array
    biases: Array
    scalars: Array
    floats: int
    code: Executable | None = None  # keeps the code alive whose addresses are among the indptr


def assemble(
    instructions: Sequence[Instruction | Call],
    planes: Mapping[int, Planes],
    aliases: Mapping[int, tuple[int, int]] | None = None,
) -> Program:
    """Return the program of these instructions; buffers with disjoint lifetimes share memory.

    `aliases` maps a buffer within another to that one's number and the first plane.
    """
    places, floats = plan_memory(instructions, planes, aliases or {})
    pool = Pool()
    parts: list[Segment | Call] = []
    run: list[Instruction] = []
    for instruction in [*instructions, None]:
        if isinstance(instruction, Instruction):
            run.append(instruction)
            continue
        if run:
            parts.append(_segment(run, places, pool))
            run = []
        if instruction is not None:
            parts.append(instruction)
    code = pool.executable()
    return Program(tuple(parts), *pool.arrays(), floats, code)


def plan_memory(
    instructions: Sequence[Instruction | Call], planes: Mapping[int, Planes], aliases: Mapping[int, tuple[int, int]]
) -> tuple[dict[int, int], int]:
    """Return the offset of each buffer and the total size: each takes the first gap among those alive with it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    held: dict[int, tuple[int, int]] = {}
    for index, instruction in enumerate(instructions):
        if isinstance(instruction, Instruction):
            for number in instruction.touches:
                if number >= 0:
                    held[number] = whole, _ = _outermost(number, planes, aliases)
                    first.setdefault(whole, index)
                    last[whole] = index
    places: dict[int, int] = {}
    end = 0
    for number in sorted(first, key=lambda one: first[one]):
        alive = sorted(
            (places[other], places[other] + planes[other].floats)
            for other in places
            if first[other] <= last[number] and last[other] >= first[number]
        )
        at = 0
        for begin, finish in alive:
            if at + planes[number].floats <= begin:
                break
            at = max(at, finish)
        places[number] = at
        end = max(end, at + planes[number].floats)
    return {number: places[whole] + begin for number, (whole, begin) in held.items()}, end + ALIGNMENT


def _outermost(number: int, planes: Mapping[int, Planes], aliases: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the outermost buffer that contains a buffer, and the offset within it in floats."""
    begin = 0
    while number in aliases:
        begin += aliases[number][1] * planes[number].size
        number = aliases[number][0]
    return number, begin


def _segment(instructions: Sequence[Instruction], places: Mapping[int, int], pool: Pool) -> Segment:
    reads = [
        instruction.tensor
        for instruction in instructions
        if instruction.opcode in PACKS and instruction.tensor is not None
    ]
    writes = [
        instruction.tensor
        for instruction in instructions
        if instruction.opcode in UNPACKS and instruction.tensor is not None
    ]
    nodes = [*reads, *writes]
    table = np.zeros((len(instructions), COLUMNS), dtype=np.int64)
    for row, instruction in zip(table, instructions, strict=True):
        with blamed_on(instruction.name):
            found = _columns(instruction, places) | pool.add(instruction)
            if instruction.tensor is not None:
                found["TENSOR"] = nodes.index(instruction.tensor)
            for name, value in found.items():
                row[Column[name]] = value
    return Segment(table, tuple(instructions), tuple(reads), tuple(writes))


def _columns(instruction: Instruction, places: Mapping[int, int]) -> dict[str, int]:
    """Return the columns of an instruction except those of its weights and tensors."""
    out, source = instruction.planes, instruction.source
    found = {
        "OPCODE": instruction.opcode,
        "CHANNELS": out.channels,
        "BATCH": out.batch,
        "IN_PLANE": source.size,
        "IN_ROW_STRIDE": source.row_stride,
        "IN_HEIGHT": source.height,
        "IN_WIDTH": source.width,
        "OUT_PLANE": out.size,
        "FIRST": out.first,
        "HEIGHT": out.height,
        "ROW": out.row,
        "ROW_STRIDE": out.row_stride,
        "RESIDUAL": -1,
        "FACTORS": -1,
    }
    if instruction.reads:
        found["IN"] = places[instruction.reads[0]] + source.first
    if instruction.writes >= 0:
        found["OUT"] = places[instruction.writes] + instruction.at * out.size
    if len(instruction.reads) > 1:
        found["RESIDUAL"] = places[instruction.reads[1]] + instruction.at * out.size
    if instruction.factors is not None:
        found |= {"FACTORS": places[instruction.factors.number] + instruction.factors.planes.first}
        found |= {"FACTORS_PLANE": instruction.factors.planes.size}
    own = _OWN[instruction.opcode](instruction, found) if instruction.opcode in _OWN else {}
    return found | own | {name: value for name, value in instruction.numbers.items() if name in Column.__members__}


def _of_sums(instruction: Instruction, found: Mapping[str, int]) -> dict[str, int]:
    assert instruction.rows is not None
    out, shapes = instruction.planes, SHARED_SHAPES if instruction.opcode == Opcode.CONVOLVE_TILES else SHAPES
    tile = tiling(out, instruction.source, shapes)
    return _runs(tile, out) | {
        "IN": found["IN"] + instruction.rows.base,
        "CHUNKS": instruction.rows.chunks,
        "TILE_SHAPE": shapes.index((tile.rows, tile.vectors)),
        "TILE_ROWS": tile.rows,
        "TILE_WIDTH": tile.vectors * WIDTH,
    }


def _runs(tile: Tiling, out: Planes) -> dict[str, int]:
    return {"RUNS": 1, "RUN": out.span} if tile.linear else {"RUNS": out.height, "RUN": out.row}


def _of_code(instruction: Instruction, found: Mapping[str, int]) -> dict[str, int]:
    out, source = instruction.planes, instruction.source
    rows = instruction.rows
    assert rows is not None
    tile = generated_tiling(out, source, rows.stride)
    assert tile is not None
    runs, (down, right) = _runs(tile, out), rows.stride
    reach = int(rows.offsets.max(initial=0)) % source.size // source.row_stride  # rows below
    vectors = -(-runs["RUN"] // WIDTH)
    each = (source.channels * down * right + len(rows.biases)) * WIDTH * _FLOAT
    left = SECOND_CACHE - source.channels * reach * source.row_stride * _FLOAT
    fitting = max(left // each, AT_ONCE)
    tiles = -(-runs["RUNS"] // max(fitting // vectors, 1))
    return runs | {
        "IN": found["IN"] + rows.base,
        "TILE_ROWS": -(-runs["RUNS"] // tiles),
        "TILE_WIDTH": fitting * WIDTH,
        "STRIDE_Y": down,
        "STRIDE_X": right,
    }


def _of_split(instruction: Instruction, found: Mapping[str, int]) -> dict[str, int]:
    out, source, n = instruction.planes, instruction.source, instruction.numbers
    row, column = n["PHASE_Y"], n["PHASE_X"]
    height = min(out.height, -(-(source.height - row) // n["STRIDE_Y"]))
    width = min(out.width, -(-(source.width - column) // n["STRIDE_X"]))
    begin = found["IN"] + row * source.row_stride + column * source.batch
    return {"CHANNELS": source.channels, "IN": begin, "HEIGHT": height, "ROW": width * out.batch}


def _from_the_beginning(instruction: Instruction, found: Mapping[str, int]) -> dict[str, int]:
    channels, begin = instruction.source.channels, found["IN"] - instruction.source.first
    return {"CHANNELS": channels, "IN": begin, "COPY_STRIDE": instruction.planes.size}


_OWN: dict[Opcode, Callable[[Instruction, Mapping[str, int]], dict[str, int]]] = {
    Opcode.CONVOLVE: _of_sums,
    Opcode.CONVOLVE_TILES: _of_sums,
    Opcode.CONVOLVE_GENERATED: _of_code,
    Opcode.DOT: _of_sums,
    Opcode.DECIMATE: _of_split,
    Opcode.BINARY: _from_the_beginning,
    Opcode.ACTIVATION: _from_the_beginning,
    Opcode.COPY: _from_the_beginning,
    Opcode.PAD_CROP: lambda instruction, found: {"CHANNELS": instruction.source.channels},
}
