"""The structure of a page: parts with blocks of text, facts, figures and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..figures.charts import Figure


@dataclass(frozen=True)
class TableCell:
    """A table cell: its text, and the value by which it is sorted."""

    text: str
    value: float | str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column holds the rows' headings."""

    headings: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    sortable: bool = False


@dataclass(frozen=True)
class Drawn:
    """A figure with its id and title on the page."""

    id: str
    title: str
    figure: Figure


@dataclass(frozen=True)
class Block:
    """One block of a part; empty fields are left out."""

    title: str = ""
    text: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[Drawn, ...] = ()
    table: Table | None = None
    code: str = ""
    code_title: str = ""


@dataclass(frozen=True)
class Part:
    """A section of the page; `folded`: collapsed until it is clicked."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True)
class Sheet:
    """The summary of dense against sparse, for readers without background."""

    sentence: str
    table: Table
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sheet: Sheet
    parts: tuple[Part, ...]
    footer: str


def plain_row(*cells: str) -> tuple[TableCell, ...]:
    """Return a row whose cells are sorted by their text."""
    return tuple(TableCell(cell, cell) for cell in cells)


def figures_of(parts: Sequence[Part]) -> list[Drawn]:
    """Return all figures of the parts, in order."""
    return [drawn for part in parts for block in part.blocks for drawn in block.figures]
