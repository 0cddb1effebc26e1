"""Which part of an output plane a kernel computes before the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.planes import Planes
from ..kernels.simd import TILE_VECTORS, WIDTH

SHAPES = ((1, 8), (1, 7), (2, 4), (2, 2))  # of tiles of one output channel: rows, and vectors of each
SHARED_SHAPES = ((1, TILE_VECTORS), (2, TILE_VECTORS // 2))  # of tiles of several that read the same inputs
VISIT = 1.5  # what it costs to begin and end the sums of one tile and output, in multiply-adds of vectors


@dataclass(frozen=True)
class Tiling:
    """What of an output plane is computed before the next output's: `rows` rows of `vectors` vectors.

    `linear` tells that the plane counts as one row, its padding included, which then are computed as well.
    """

    rows: int
    vectors: int
    linear: bool


def tiling(out: Planes, source: Planes, shapes: Sequence[tuple[int, int]] = SHAPES) -> Tiling:
    """Return the cheapest tiling of an output's planes. Without gaps on both sides a plane may count as one row."""
    # A row's last vector reaches into the next row, which must not be in the same tile then.
    tilings = [Tiling(rows, vectors, False) for rows, vectors in shapes if rows == 1 or out.row % WIDTH == 0]
    if out.row_stride == source.row_stride:
        tilings += [Tiling(rows, vectors, True) for rows, vectors in shapes if rows == 1]
    return min(tilings, key=lambda tile: _cost(tile, out))


def keeps_within(out: Planes, source: Planes) -> bool:
    """Return whether no vector of a row reaches into the next one, so that sums may overwrite what they begin with."""
    return out.row % WIDTH == 0 or all(tiling(out, source, shapes).linear for shapes in (SHAPES, SHARED_SHAPES))


def generated_tiling(out: Planes, source: Planes) -> Tiling | None:
    """Return how generated code goes through the output's planes, vector by vector; None if it cannot.

    It goes through a plane more than once, so that no vector of a row may reach into the next.
    """
    found = [Tiling(1, 1, False)] if out.row % WIDTH == 0 else []
    found += [Tiling(1, 1, True)] if out.row_stride == source.row_stride else []
    return min(found, key=lambda tile: _cost(tile, out), default=None)


def _cost(tile: Tiling, out: Planes) -> float:
    """Return what one weight costs in all tiles, and what the tiles cost, in multiply-adds of vectors."""
    lines, span = (1, out.span) if tile.linear else (out.height, out.row)
    vectors = -(-span // WIDTH)
    whole, left = divmod(vectors, tile.vectors)
    groups, single = divmod(lines, tile.rows)
    visits = groups * (whole + tile.rows * _pieces(left)) + single * (whole * _pieces(tile.vectors) + _pieces(left))
    return lines * vectors + VISIT * visits


def _pieces(vectors: int) -> int:
    """Return how many tiles of 4, 2 or 1 vectors make up this many."""
    return vectors // 4 + (vectors % 4).bit_count()
