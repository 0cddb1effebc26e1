"""The arrays that `kernels.run` goes through: a table of steps, the weights of all, and where each buffer lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from ..kernel_errors import blamed_on
from ..kernels.opcodes import COLUMNS, Column, Opcode
from ..kernels.planes import ALIGNMENT, Planes
from ..kernels.simd import TILE, WIDTH
from ..lowering.builder import Call, Step
from ..lowering.packed_rows import SHAPES, SHARED_SHAPES, tiling

Array = np.ndarray[Any, Any]
PACKS, UNPACKS = (Opcode.PACK, Opcode.PACK_CHANNELS_LAST), (Opcode.UNPACK, Opcode.UNPACK_CHANNELS_LAST)


@dataclass(frozen=True)
class Segment:
    """Steps with kernels that follow each other: rows of the table, and the torch tensors they read and write."""

    table: Array
    steps: tuple[Step, ...]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """Of its first step with weights, or of its first."""
        return next((step.name for step in self.steps if step.rows is not None), self.steps[0].name)


@dataclass(frozen=True)
class Program:
    """Segments and calls in order, the arrays that all segments share, and the floats that its buffers take."""

    parts: tuple[Segment | Call, ...]
    offsets: Array
    weights: Array
    pointers: Array
    biases: Array
    limits: Array
    floats: int


def assemble(
    steps: Sequence[Step | Call], planes: Mapping[int, Planes], within: Mapping[int, tuple[int, int]] | None = None
) -> Program:
    """Return the program of these steps; buffers share memory where one is done with before the other begins.

    `within` names those that are planes of another: which, and from which plane on.
    """
    places, floats = place_buffers(steps, planes, within or {})
    pool = _Pool()
    parts: list[Segment | Call] = []
    run: list[Step] = []
    for step in [*steps, None]:
        if isinstance(step, Step):
            run.append(step)
            continue
        if run:
            parts.append(_segment(run, places, pool))
            run = []
        if step is not None:
            parts.append(step)
    return Program(tuple(parts), *pool.arrays(), floats)


def place_buffers(
    steps: Sequence[Step | Call], planes: Mapping[int, Planes], within: Mapping[int, tuple[int, int]]
) -> tuple[dict[int, int], int]:
    """Return where each buffer begins, and the end of all: each takes the first gap among those alive with it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    held: dict[int, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        if isinstance(step, Step):
            for number in step.touches:
                if number >= 0:
                    held[number] = whole, _ = _outermost(number, planes, within)
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


def _outermost(number: int, planes: Mapping[int, Planes], within: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the buffer that one lies in, and how many floats from its beginning."""
    begin = 0
    while number in within:
        begin += within[number][1] * planes[number].size
        number = within[number][0]
    return number, begin


class _Pool:
    """The weights of all steps, one after the other."""

    def __init__(self) -> None:
        self.offsets: list[Array] = []
        self.weights: list[Array] = []
        self.pointers: list[Array] = []
        self.biases: list[Array] = []
        self.limits: list[float] = []
        self.entries = self.values = self.rows = self.outputs = 0

    def add(self, step: Step) -> dict[str, int]:
        """Append a step's weights and return the columns that say where they are."""
        self.limits += step.limits
        found = {"SCALARS": len(self.limits) - 2}
        if step.rows is not None:
            found |= {"INDPTR": self.rows, "BIASES": self.outputs, "CHANNELS": len(step.rows.biases)}
            # The pointers count offsets; tiles have more weights than those, so that weights lie elsewhere.
            each = TILE if step.opcode == Opcode.CONVOLVE_TILES else 1
            found["VALUES"] = self.values - each * self.entries
            self.pointers.append(step.rows.pointers + self.entries)
            self.offsets.append(step.rows.offsets)
            self.weights.append(step.rows.weights)
            self.biases.append(step.rows.biases)
            self.entries += len(step.rows.offsets)
            self.values += len(step.rows.weights)
            self.rows += len(step.rows.pointers)
            self.outputs += len(step.rows.biases)
        return found

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        return (
            np.concatenate([*self.offsets, np.zeros(1, np.uint32)]),
            np.concatenate([*self.weights, np.zeros(1, np.float32)]),
            np.concatenate([*self.pointers, np.zeros(1, np.int64)]),
            np.concatenate([*self.biases, np.zeros(1, np.float32)]),
            np.array(self.limits, dtype=np.float32),
        )


def _segment(steps: Sequence[Step], places: Mapping[int, int], pool: _Pool) -> Segment:
    reads = [step.tensor for step in steps if step.opcode in PACKS and step.tensor is not None]
    writes = [step.tensor for step in steps if step.opcode in UNPACKS and step.tensor is not None]
    nodes = [*reads, *writes]
    table = np.zeros((len(steps), COLUMNS), dtype=np.int64)
    for row, step in zip(table, steps, strict=True):
        with blamed_on(step.name):
            found = _columns(step, places) | pool.add(step)
            if step.tensor is not None:
                found["TENSOR"] = nodes.index(step.tensor)
            for name, value in found.items():
                row[Column[name]] = value
    return Segment(table, tuple(steps), tuple(reads), tuple(writes))


def _columns(step: Step, places: Mapping[int, int]) -> dict[str, int]:
    """Return the columns of a step but those of its weights and tensors."""
    out, source = step.planes, step.source
    found = {
        "OPCODE": step.opcode,
        "CHANNELS": out.channels,
        "BATCH": out.lanes,
        "IN_PLANE": source.size,
        "IN_ROW_STRIDE": source.pitch,
        "IN_HEIGHT": source.height,
        "IN_WIDTH": source.width,
        "OUT_PLANE": out.size,
        "FIRST": out.first,
        "HEIGHT": out.height,
        "ROW": out.row,
        "ROW_STRIDE": out.pitch,
        "RESIDUAL": -1,
        "FACTORS": -1,
    }
    if step.reads:
        found["IN"] = places[step.reads[0]] + source.first
    if step.writes >= 0:
        found["OUT"] = places[step.writes] + step.at * out.size
    if len(step.reads) > 1:
        found["RESIDUAL"] = places[step.reads[1]] + step.at * out.size
    if step.factors is not None:
        found |= {"FACTORS": places[step.factors.number] + step.factors.planes.first}
        found |= {"FACTORS_PLANE": step.factors.planes.size}
    own = _OWN[step.opcode](step, found) if step.opcode in _OWN else {}
    return found | own | {name: value for name, value in step.numbers.items() if name in Column.__members__}


def _of_sums(step: Step, found: Mapping[str, int]) -> dict[str, int]:
    assert step.rows is not None
    out, shapes = step.planes, SHARED_SHAPES if step.opcode == Opcode.CONVOLVE_TILES else SHAPES
    tile = tiling(out, step.source, shapes)
    lines = {"RUNS": 1, "RUN": out.span} if tile.linear else {"RUNS": out.height, "RUN": out.row}
    return lines | {
        "IN": found["IN"] + step.rows.base,
        "CHUNKS": step.rows.chunks,
        "TILE_SHAPE": shapes.index((tile.rows, tile.vectors)),
        "TILE_ROWS": tile.rows,
        "TILE_WIDTH": tile.vectors * WIDTH,
    }


def _of_split(step: Step, found: Mapping[str, int]) -> dict[str, int]:
    out, source, n = step.planes, step.source, step.numbers
    row, column = n["PHASE_Y"], n["PHASE_X"]
    height = min(out.height, -(-(source.height - row) // n["STRIDE_Y"]))
    width = min(out.width, -(-(source.width - column) // n["STRIDE_X"]))
    begin = found["IN"] + row * source.pitch + column * source.lanes
    return {"CHANNELS": source.channels, "IN": begin, "HEIGHT": height, "ROW": width * out.lanes}


def _from_the_beginning(step: Step, found: Mapping[str, int]) -> dict[str, int]:
    channels, begin = step.source.channels, found["IN"] - step.source.first
    return {"CHANNELS": channels, "IN": begin, "COPY_STRIDE": step.planes.size}


_OWN: dict[Opcode, Callable[[Step, Mapping[str, int]], dict[str, int]]] = {
    Opcode.CONVOLVE: _of_sums,
    Opcode.CONVOLVE_TILES: _of_sums,
    Opcode.DOT: _of_sums,
    Opcode.DECIMATE: _of_split,
    Opcode.BINARY: _from_the_beginning,
    Opcode.ACTIVATION: _from_the_beginning,
    Opcode.COPY: _from_the_beginning,
    Opcode.PAD_CROP: lambda step, found: {"CHANNELS": step.source.channels},
}
