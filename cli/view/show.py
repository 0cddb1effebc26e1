"""Printing lines and tables."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import click
from rich.console import Console
from rich.table import Table

from sparsify.quantities import byte_count as byte_count
from sparsify.quantities import count as count
from sparsify.quantities import percent as percent
from sparsify.quantities import sizes


@dataclass(frozen=True)
class Layer:
    """A row of the per-layer table; `kept` is None for a tensor without a mask.

    `original` is the shape before a shrink, None for a tensor that was not cut. `more` has the cells of additional
    columns.
    """

    name: str
    shape: Sequence[int]
    kept: int | None
    original: Sequence[int] | None = None
    more: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def duration(seconds: float) -> str:
    """Return whole seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def plain_table(first: str, *numbers: str, last: str = "") -> Table:
    """Return an empty table without lines: a text column that folds, columns of numbers, and a text column `last`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    if last:
        table.add_column(last)
    return table


def layer_table(layers: Iterable[Layer], more: Sequence[str] = ()) -> Table:
    """Return the table layer, shape, kept, sparsity, and `more` columns; it folds long names to fit the console.

    If a tensor was cut, a column has its shape before.
    """
    layers = list(layers)
    cut = any(layer.original is not None for layer in layers)
    table = plain_table("layer")
    table.add_column("shape", no_wrap=True)
    if cut:
        table.add_column("cut from", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("sparsity", justify="right", no_wrap=True)
    for heading in more:
        table.add_column(heading, no_wrap=True)
    for layer in layers:
        shapes = [sizes(shape, scalar="-") for shape in (layer.shape, layer.original or ())[: 1 + cut]]
        if layer.kept is None:
            table.add_row(layer.name, *shapes, f"{layer.size:,}", "-", *layer.more)
        else:
            sparsity = 1 - layer.kept / layer.size if layer.size else 0.0
            table.add_row(layer.name, *shapes, f"{layer.kept:,}", percent(sparsity), *layer.more)
    return table


def say(*lines: str) -> None:
    """Print lines; on a terminal they are wrapped to its width, with a hanging indent, but commands stay whole."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        wrapped = textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) if width else []
        click.echo("\n".join(wrapped) if wrapped and not line.startswith("  sparsify ") else line)


def print_table(table: Table) -> None:
    """Print a table to standard output, as wide as the terminal, at least 80 columns."""
    _console().print(table)


def fits(table: Table) -> bool:
    """Return whether a table fits the console without folded or cut lines."""
    console = _console()
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    console.width = max(80, console.width) if console.is_terminal else 80
    return console
