"""The table of `sparsify diff`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from sparsify.overlap import LayerOverlap, total

from .show import percent, plain_table


def overlap_table(rows: Sequence[LayerOverlap]) -> Table:
    """Return a line for each layer and one for all: entries, kept by either mask, by both, intersection over union."""
    table = plain_table("layer", "weights", "A keeps", "B keeps", "both", "IoU")
    for row in [*rows, total(rows)]:
        numbers = (row.entries, row.one, row.other, row.both)
        table.add_row(row.name, *(f"{number:,}" for number in numbers), percent(row.iou))
    return table
