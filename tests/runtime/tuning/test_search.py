"""Autotuning: strategies are compared by the time they take once they run alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sparsify.runtime.tuning import search
from sparsify.runtime.tuning.search import TORCH, Strategy, timed

SPLIT = Strategy("split")


@pytest.mark.parametrize("polling", [0.0, 0.004], ids=["no thread polls", "threads poll for 4 ms"])
def test_a_strategy_is_not_slowed_by_threads_that_still_poll_after_the_one_before(
    monkeypatch: pytest.MonkeyPatch, polling: float
) -> None:
    now, free, last = 0.0, 0.0, TORCH

    def run(strategy: Strategy) -> list[Any]:
        """Take 2 ms, or 1 ms of its own, three times as long on cores on which the other's threads still poll."""
        nonlocal now, free, last
        if strategy != last:
            free, last = now + polling, strategy
        now += (0.002 if strategy == TORCH else 0.001) * (3 if now < free else 1)
        return []

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert timed(run, [TORCH, SPLIT]) == {TORCH: pytest.approx(0.002), SPLIT: pytest.approx(0.001)}


def test_a_strategy_that_takes_longer_than_a_turn_runs_once_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, 0

    def run(strategy: Strategy) -> list[Any]:
        nonlocal now, calls
        now, calls = now + 2 * search.TURN, calls + 1
        return []

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert timed(run, [SPLIT]) == {SPLIT: pytest.approx(2 * search.TURN)}
    assert calls == search._LEAST
