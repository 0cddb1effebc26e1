"""Means over seeds, and differences over paired seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """The mean, sample standard deviation (None for one value) and number of some values."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, the half width of its 95 % confidence interval (None for one pair), the count."""

    mean: float
    half_width: float | None
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies above or below 0; 0 if it contains 0 or is unknown."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return 0
        return 1 if self.mean > 0 else -1


def mean_of(found: Mapping[_Key, float]) -> Mean | None:
    """Return the mean over seeds, None without values."""
    if not found:
        return None
    numbers = list(found.values())
    return Mean(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def difference(one: Mapping[_Key, float], other: Mapping[_Key, float]) -> Difference | None:
    """Return `one` minus `other` over their common seeds, None if there are none.

    The interval is Student's: mean +- t(0.975, n - 1) * s / sqrt(n), s the standard deviation of the differences.
    """
    pairs = [one[seed] - other[seed] for seed in one if seed in other]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Difference(pairs[0], None, 1)
    width = two_sided_t(_CONFIDENCE, len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
    return Difference(fmean(pairs), width, len(pairs))


def accuracy_text(found: Mean | None) -> str:
    """Return a mean of accuracies in per cent: "61.20 ± 0.31"."""
    if found is None:
        return "-"
    return f"{100 * found.mean:.2f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.2f}")


def difference_text(found: Difference | None) -> str:
    """Return a difference in points with its interval: "+0.52 (-0.10 to +1.14)"."""
    if found is None:
        return "-"
    mean, width = 100 * found.mean, found.half_width
    if width is None:
        return f"{mean:+.2f} (one pair)"
    return f"{mean:+.2f} ({mean - 100 * width:+.2f} to {mean + 100 * width:+.2f})"


def two_sided_t(share: float, degrees: int) -> float:
    """Return the t with P(|T| <= t) = `share` for Student's distribution with `degrees` >= 1 degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < share else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """Return P(|T| <= t) for t = sqrt(degrees) * tan(angle): Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    odd, cosine = degrees % 2, math.cos(angle)
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for index in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (index - 1) / index
        total += term
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
