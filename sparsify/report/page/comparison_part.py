"""The part of a page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence

from ...quantities import byte_count, percent
from ..comparison import Cell
from ..figures.comparison import accuracy_over_sparsity, paired_differences
from ..statistics import accuracy_text, difference_text
from .parts import Block, Drawn, Part, Table, TableCell


def comparison_part(cells: Sequence[Cell]) -> Part:
    """Return the part with table and figures that compare the recipes of several runs."""
    headings = ("runs", "n", "sparsity", "test accuracy", f"against {cells[0].label}, points", "test loss", "file")
    figures = []
    if any(cell.sparsity for cell in cells):
        title = "Test accuracy over sparsity: mean and standard deviation over seeds, a point for each seed"
        figures.append(Drawn("compare-sparsity", title, accuracy_over_sparsity(cells)))
    differences = paired_differences(cells)
    if differences is not None:
        title = f"Paired differences from {cells[0].label}, with 95 % confidence intervals"
        figures.append(Drawn("compare-differences", title, differences))
    text = (
        "Accuracy at the end, at the final sparsity: mean ± standard deviation over seeds, in per cent. Differences "
        "are over paired seeds, with 95 % confidence intervals (Student's t), each of one comparison alone.",
    )
    table = Table(headings, tuple(_row(cell) for cell in cells), sortable=True)
    return Part("comparison", "Comparison", (Block(text=text, table=table, figures=tuple(figures)),))


def _row(cell: Cell) -> tuple[TableCell, ...]:
    loss = sum(cell.loss.values()) / len(cell.loss)
    return (
        TableCell(cell.label, cell.label),
        TableCell(f"{cell.reached.n}", cell.reached.n),
        TableCell(percent(cell.sparsity), cell.sparsity),
        TableCell(accuracy_text(cell.reached), cell.reached.mean),
        TableCell(difference_text(cell.against), "" if cell.against is None else cell.against.mean),
        TableCell(f"{loss:.4f}", loss),
        TableCell(byte_count(round(cell.bytes)), cell.bytes),
    )
