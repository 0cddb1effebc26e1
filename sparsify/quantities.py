"""Fractions, sizes and counts as text for people. Only here is sparsity given in per cent."""

from __future__ import annotations

from collections.abc import Iterable


def percent(fraction: float) -> str:
    """Return a fraction in per cent with enough digits to differ from 0 and 100 %: 90.0 %, 99.9 %, 99.9988 %."""
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
    """Return a number with its noun: 1 epoch, 2,000 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sizes(shape: Iterable[int], *, scalar: str = "a scalar") -> str:
    """Return a tensor's shape: 64x3x3x3."""
    return "x".join(map(str, shape)) or scalar
