"""Tiling: the part of an output plane that a kernel computes before it goes to the next plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.planes import Planes
from ..kernels.simd import TILE_VECTORS, WIDTH

SHAPES = ((1, 8), (1, 7), (2, 4), (2, 2))  # tiles of one output channel: rows, and vectors of each
SHARED_SHAPES = ((1, TILE_VECTORS), (2, TILE_VECTORS // 2))  # tiles of several channels that share their inputs
VISIT = 1.5  # cost of starting and storing the sums of one tile and output, in multiply-adds of vectors


@dataclass(frozen=True)
class Tiling:
    """A tile of an output plane: `rows` rows of `vectors` vectors.

    `linear`: the plane is treated as one row, including its padding, which is computed too.
    """

    rows: int
    vectors: int
    linear: bool


def tiling(out: Planes, source: Planes, shapes: Sequence[tuple[int, int]] = SHAPES) -> Tiling:
    """Return the cheapest tiling of an output's planes; with equal row strides a plane may be treated as one row."""
    # If a row's last vector reaches into the next row, that must not be in the same tile.
    tilings = [Tiling(rows, vectors, False) for rows, vectors in shapes if rows == 1 or out.row % WIDTH == 0]
    if out.row_stride == source.row_stride:
        tilings += [Tiling(rows, vectors, True) for rows, vectors in shapes if rows == 1]
    return min(tilings, key=lambda tile: _cost(tile, out))


def keeps_within(out: Planes, source: Planes) -> bool:
    """Return whether no vector of a row reaches into the next one, so that sums may overwrite the residual."""
    return out.row % WIDTH == 0 or all(tiling(out, source, shapes).linear for shapes in (SHAPES, SHARED_SHAPES))


def reads_strides(batch: int) -> bool:
    """Return whether generated code may read inputs with a stride: a vector is one pixel of all images."""
    return batch == WIDTH


def generated_tiling(out: Planes, source: Planes, stride: tuple[int, int] = (1, 1)) -> Tiling | None:
    """Return the tiling of generated code, which goes vector by vector; None if it cannot run on these planes.

    It goes through a plane several times, so that no vector of a row may reach into the next.
    """
    if stride != (1, 1):
        return Tiling(1, 1, False) if reads_strides(out.batch) else None
    found = [Tiling(1, 1, False)] if out.row % WIDTH == 0 else []
    found += [Tiling(1, 1, True)] if out.row_stride == source.row_stride else []
    return min(found, key=lambda tile: _cost(tile, out), default=None)


def _cost(tile: Tiling, out: Planes) -> float:
    """Return the cost of one weight in all tiles plus that of the tiles, in multiply-adds of vectors."""
    lines, span = (1, out.span) if tile.linear else (out.height, out.row)
    vectors = -(-span // WIDTH)
    whole, left = divmod(vectors, tile.vectors)
    groups, single = divmod(lines, tile.rows)
    visits = groups * (whole + tile.rows * _pieces(left)) + single * (whole * _pieces(tile.vectors) + _pieces(left))
    return lines * vectors + VISIT * visits


def _pieces(vectors: int) -> int:
    """Return how many tiles of 4, 2 or 1 vectors make up this many."""
    return vectors // 4 + (vectors % 4).bit_count()
