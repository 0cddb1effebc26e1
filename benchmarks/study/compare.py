"""What the rows of a study say: means over seeds, and differences of methods over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from .rows import Row

Cell = tuple[str, str, str]  # model, method, sparsity as in the file, "" for dense training


@dataclass(frozen=True)
class Mean:
    """Mean, standard deviation of the sample (None for one value) and number of some values."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, and the half width of its 95 % confidence interval (None for one pair)."""

    mean: float
    half_width: float | None
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies above or below 0, otherwise 0: it cannot be told."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return 0
        return 1 if self.mean > 0 else -1


def cell_of(row: Row) -> Cell:
    """Return which mean a row is part of."""
    return (row["model"], row["method"], row["sparsity"])


def values(rows: Sequence[Row], cell: Cell, column: str) -> dict[str, float]:
    """Return a column's values of one method by seed."""
    return {row["seed"]: float(row[column]) for row in rows if cell_of(row) == cell}


def mean_of(found: Mapping[str, float]) -> Mean | None:
    """Return the mean over seeds, None if there is none."""
    if not found:
        return None
    numbers = list(found.values())
    return Mean(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Difference | None:
    """Return one minus other over the seeds that both have, None if there is none.

    The interval is Student's: mean +- t(0.975, n - 1) * s / sqrt(n), s the standard deviation of the differences.
    """
    pairs = [one[seed] - other[seed] for seed in one if seed in other]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs[0], None, 1)
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(pairs) - 1))
    return Difference(fmean(pairs), quantile * stdev(pairs) / math.sqrt(len(pairs)), len(pairs))
