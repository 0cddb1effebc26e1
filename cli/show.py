"""How numbers, tables and sizes look on the screen. Sparsity is per cent here and nowhere else."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Layer:
    """A row of the per-layer table; `kept` is None for a tensor without a mask.

    `original` is the shape before the model was cut, None where nothing was cut.
    """

    name: str
    shape: Sequence[int]
    kept: int | None
    original: Sequence[int] | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


def percent(fraction: float) -> str:
    """Return a fraction as per cent with as many digits as still say something: 90 %, 99.95 %, 99.9988 %."""
    value = 100 * fraction
    for digits in (1, 2, 3, 4, 5):
        text = f"{value:.{digits}f}"
        if float(text) not in (0.0, 100.0) or value in (0.0, 100.0):
            break
    return f"{text} %"


def byte_count(size: int) -> str:
    """Return a number of bytes in powers of ten: 512 B, 1.3 kB, 574.6 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95 or unit == "GB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def count(number: int, noun: str) -> str:
    """Return a number of things: 1 epoch, 2,000 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return whole seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def layer_table(layers: Iterable[Layer]) -> Table:
    """Return the table layer, shape, kept, sparsity; it folds long names to fit the console.

    Where a tensor was cut, a column tells the shape that it had before.
    """
    layers = list(layers)
    cut = any(layer.original is not None for layer in layers)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    if cut:
        table.add_column("cut from", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("sparsity", justify="right", no_wrap=True)
    for layer in layers:
        shapes = [_sizes(layer.shape), _sizes(layer.original or ())] if cut else [_sizes(layer.shape)]
        if layer.kept is None:
            table.add_row(layer.name, *shapes, f"{layer.size:,}", "-")
        else:
            sparsity = 1 - layer.kept / layer.size if layer.size else 0.0
            table.add_row(layer.name, *shapes, f"{layer.kept:,}", percent(sparsity))
    return table


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "-"


def say(*lines: str) -> None:
    """Print lines, on a terminal broken between words to its width, continued with an indent."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        wrapped = textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) if width else []
        click.echo("\n".join(wrapped) if wrapped else line)


def print_table(table: Table) -> None:
    """Print a table to standard output, as wide as the terminal, at least 80 columns."""
    console = Console(highlight=False, markup=False)
    console.width = max(80, console.width) if console.is_terminal else 80
    console.print(table)
