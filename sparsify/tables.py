"""Plain-text tables for output in Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from .quantities import percent, sizes


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first two columns are left-aligned, the others right-aligned."""
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def layer_lines(layers: Iterable[tuple[str, Sequence[int], int]]) -> list[str]:
    """Return the lines of a table (layer, shape, kept, sparsity) of layers given as (name, shape, kept entries)."""
    rows = []
    for name, shape, kept in layers:
        sparsity = 1 - kept / prod(shape) if prod(shape) else 0.0
        rows.append((name, sizes(shape, scalar="-"), f"{kept:,}", percent(sparsity)))
    return text_table(("layer", "shape", "kept", "sparsity"), rows)
