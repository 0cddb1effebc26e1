"""Threads that take tasks and jobs, awake or asleep."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.runtime import kernels
from sparsify.runtime.plan import arrays_of, make_plan, memory
from sparsify.runtime.program import Segment
from sparsify.runtime.workers import Workers


def test_a_task_is_called_once_for_each_thread() -> None:
    workers = Workers(4)
    for _ in range(50):
        seen: list[int] = []
        workers.run(seen.append)
        assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_of_any_thread_is_raised_when_all_are_done(failing: int) -> None:
    workers, done = Workers(3), []

    def task(part: int) -> None:
        if part == failing:
            raise ValueError(f"part {part}")
        time.sleep(0.01)
        done.append(part)

    with pytest.raises(ValueError, match=f"part {failing}"):
        workers.run(task)
    assert sorted(done) == sorted({0, 1, 2} - {failing})
    workers.run(done.append)
    assert len(done) == 5


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_job_is_whole_when_it_returns_whether_threads_are_awake_or_asleep(count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 5, 1)).eval().requires_grad_(False)
    x = torch.randn(2, 3, 6, 6)
    plan = make_plan(model, [x], lambda tensors: (tensors[0],))
    segment = plan.program.parts[0]
    assert isinstance(segment, Segment)
    workers, buffers = Workers(count), memory(plan.program.floats)
    for number in range(200):
        y = torch.empty(2, 5, 6, 6)
        given = x + number
        addresses = np.array([given.data_ptr(), y.data_ptr()], dtype=np.int64)
        workers.split(arrays_of(plan.program, segment, buffers, addresses))
        torch.testing.assert_close(y, model(given), rtol=1e-4, atol=1e-4)
        if number % 40 == 0:
            # Longer than threads look for a job: the next one wakes them.
            time.sleep(0.05)
        if number % 30 == 0:
            parts: list[int] = []
            workers.run(parts.append)
            assert len(parts) == count


def test_a_thread_that_finds_no_job_says_that_it_sleeps() -> None:
    signals, job = np.zeros(kernels.ASLEEP + 2, dtype=np.int64), np.zeros(17, dtype=np.int64)
    assert kernels.serve(signals, job, 1, 2, 0) == 0
    assert signals[kernels.ASLEEP + 1] == 1
    assert kernels.wake(signals, 1)
    assert not kernels.wake(signals, 1)
