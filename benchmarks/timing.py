"""Alternating timings of several functions, so that other load on the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles

import torch


def clock() -> float:
    """Return a time in seconds: with one thread processor time, which other processes do not change."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def kind_of_time() -> str:
    """Return a sentence that says what `clock` measures."""
    return "Times are of the processor." if torch.get_num_threads() == 1 else "Times are of the clock on the wall."


def alternate(timed: Mapping[str, Callable[[], float]], rounds: int, times: int = 1) -> dict[str, list[float]]:
    """Return each function's seconds by round, the median of `times` calls; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for index in range(rounds):
        for name in list(timed) if index % 2 == 0 else list(timed)[::-1]:
            seconds[name].append(median(timed[name]() for _ in range(times)))
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and upper quartiles; of one value, the value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def figures(seconds: Sequence[float], dense: Sequence[float]) -> str:
    """Return cells: median and quartiles in milliseconds, then the speedup over the dense model."""
    ratios = [whole / one for whole, one in zip(dense, seconds, strict=True)]
    (low, high), (least, most) = quartiles(seconds), quartiles(ratios)
    times = f"{1e3 * median(seconds):.4g} | {1e3 * low:.4g} to {1e3 * high:.4g}"
    return f"{times} | {median(ratios):.2f} | {least:.2f} to {most:.2f}"
