"""A comparison of runs as a table on the screen, a CSV file with a row for each run, and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sparsify.errors import SparsifyError
from sparsify.formats.io.atomic import atomic_write, check_writable
from sparsify.report.comparison import Cell
from sparsify.report.statistics import accuracy_text, difference_text

from .show import byte_count, percent, plain_table

COLUMNS = ("label", "seed", "sparsity", "test_accuracy", "test_loss", "bytes", "folder")


def comparison_table(cells: Sequence[Cell]) -> Table:
    """Return the table of recipes: accuracy as mean ± standard deviation, differences with their intervals."""
    table = plain_table("runs", "n", "sparsity", "test accuracy, %", "difference, points", "file")
    for cell in cells:
        size = byte_count(round(cell.bytes))
        against = "-" if cell is cells[0] else difference_text(cell.against)
        reached = accuracy_text(cell.reached)
        table.add_row(cell.label, str(cell.reached.n), percent(cell.sparsity), reached, against, size)
    return table


def comparison_lines(cells: Sequence[Cell]) -> list[str]:
    """Return lines that explain the numbers of the table."""
    lines = ["accuracy at the end: mean ± standard deviation over seeds"]
    if len(cells) > 1:
        first = cells[0].label
        lines.append(f"differences from {first} over paired seeds, with 95 % confidence intervals (Student's t)")
    return lines


def write_rows(cells: Sequence[Cell], path: Path) -> None:
    """Write a CSV file with a row for each run."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        for run in sorted(cell.runs, key=lambda run: run.seed):
            numbers = (run.sparsity, cell.accuracy[run.seed], cell.loss[run.seed])
            short = [f"{number:.6g}" for number in numbers]
            writer.writerow([cell.label, run.seed, *short, run.file.bytes_file, run.folder])
    atomic_write(path, text.getvalue().encode())


def check_figure(path: str) -> None:
    """Raise SparsifyError unless a figure can be drawn and written to `path`."""
    from sparsify.report.figures.charts import KINDS, check_installed

    if Path(path).suffix.lower() not in KINDS:
        raise SparsifyError(f"--figure {path}: the name has to end in {' or '.join(KINDS)}")
    check_writable(path)
    check_installed("--figure")


def write_figure(cells: Sequence[Cell], path: str | Path) -> None:
    """Draw accuracy over sparsity."""
    from sparsify.report.figures.charts import save
    from sparsify.report.figures.comparison import accuracy_over_sparsity

    save(accuracy_over_sparsity(cells), path)
