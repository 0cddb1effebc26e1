"""Long runs: memory, open files and threads do not grow."""

import gc
import os
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparsify

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(once: Callable[[], object], times: int) -> tuple[int, int, int]:
    """Return by how much bytes, open files and threads are more after the second half of so many calls."""
    found = []
    for _ in range(2):
        for _ in range(times // 2):
            once()
        gc.collect()
        found.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count()))
    before, after = found
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def test_training_steps_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    sparsify.convert(model)
    pruning = {"sparsity": 0.8, "scope": "filter", "schedule": {"name": "cyclic", "cycles": 4}, "after_cycles": "union"}
    pruner = sparsify.Pruner(model, {**pruning, "every": "10it"}, 2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(16, 32), torch.randint(0, 8, (16,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()

    more_bytes, more_files, more_threads = growth(step, 2000)
    assert pruner.finished
    assert more_bytes < 5e6 and (more_files, more_threads) == (0, 0)


def test_engine_calls_leave_nothing_behind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    sparsify.convert(model)
    x = torch.randn(2, 3, 8, 8)
    engine = sparsify.compile(model, x, tune=False)
    more_bytes, more_files, more_threads = growth(lambda: engine(x), 20_000)
    assert more_bytes < 5e6 and (more_files, more_threads) == (0, 0)
