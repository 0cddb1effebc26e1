"""Rows of a study: the mean that each belongs to, and its values by seed."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row

Cell = tuple[str, str, str]  # model, method, sparsity as in the file, "" for dense training


def cell_of(row: Row) -> Cell:
    """Return the cell that a row belongs to."""
    return (row["model"], row["method"], row["sparsity"])


def values(rows: Sequence[Row], cell: Cell, column: str) -> dict[str, float]:
    """Return a column's values of one method by seed."""
    return {row["seed"]: float(row[column]) for row in rows if cell_of(row) == cell}
