"""Threads that take tasks and jobs, awake or asleep, whatever is raised in between."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify.calls import Inputs
from sparsify.runtime.codegen.jit import ready
from sparsify.runtime.kernels import interpreter
from sparsify.runtime.program.assemble import Segment
from sparsify.runtime.program.plan import arrays_of, make_plan, memory
from sparsify.runtime.threads import thread_pool as workers
from sparsify.runtime.threads.thread_pool import Workers


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


def job_of(count: int) -> tuple[Workers, Callable[[Tensor], Tensor], nn.Module]:
    """Return threads, a job that computes a network with them, and the network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 5, 1)).eval().requires_grad_(False)
    plan = make_plan(model, [torch.randn(2, 3, 6, 6)], lambda tensors: Inputs(tensors[0]))
    segment = plan.program.parts[0]
    assert isinstance(segment, Segment)
    workers, buffers = Workers(count), memory(plan.program.floats)

    def job(x: Tensor) -> Tensor:
        y = torch.empty(2, 5, 6, 6)
        addresses = np.array([x.data_ptr(), y.data_ptr()], dtype=np.int64)
        workers.split(arrays_of(plan.program, segment, buffers, addresses))
        return y

    return workers, job, model


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_job_is_whole_when_it_returns_whether_threads_are_awake_or_asleep(count: int) -> None:
    workers, job, model = job_of(count)
    x = torch.randn(2, 3, 6, 6)
    for number in range(200):
        given = x + number
        torch.testing.assert_close(job(given), model(given), rtol=1e-4, atol=1e-4)
        if number % 40 == 0:
            # Longer than threads look for a job: the next one wakes them.
            time.sleep(0.05)
        if number % 30 == 0:
            parts: list[int] = []
            workers.run(parts.append)
            assert len(parts) == count


class Interrupt(BaseException):
    """As a signal handler raises it."""


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("when", ["before the job", "while threads wake", "after the job"])
def test_a_job_after_one_that_was_torn_is_whole(count: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, job, model = job_of(count)
    x = torch.randn(2, 3, 6, 6)

    def torn(*args: object) -> bool:
        """Stand for the compiled code, with a handler that raises next to it."""
        if args[2] != 0:
            return ready()(*args)  # a thread that serves: handlers do not run there
        if when == "before the job":
            raise Interrupt
        done = ready()(*args)
        if when == "after the job" and done or when == "while threads wake":
            raise Interrupt
        return done

    for round in range(6):
        with monkeypatch.context() as during, pytest.raises(Interrupt):
            during.setattr(workers, "ready", lambda: torn)
            time.sleep(0.05 * (round % 2))
            job(x)
        for number in range(3):
            given = x + number
            torch.testing.assert_close(job(given), model(given), rtol=1e-4, atol=1e-4)


class Torn(SimpleQueue):  # type: ignore[type-arg]
    """A queue whose reader is interrupted, once."""

    left = 1

    def get(self, *args: object) -> object:  # type: ignore[override]
        if threading.current_thread() is threading.main_thread() and Torn.left:
            Torn.left -= 1
            raise Interrupt
        return super().get()


def test_what_a_task_says_late_is_not_taken_for_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, done = Workers(2), set()

    def slow(run: int, part: int) -> None:
        time.sleep(0.05 * part)
        done.add((run, part))

    Torn.left = 1
    with monkeypatch.context() as during, pytest.raises(Interrupt):
        during.setattr(workers, "SimpleQueue", Torn)
        threads.run(partial(slow, 0))
    for run in range(1, 4):
        threads.run(partial(slow, run))
        assert {(run, 0), (run, 1)} <= done


def test_the_number_of_torch_s_threads_stays_as_it_was_for_threads_that_are_yet_to_come() -> None:
    before, seen = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            held = Workers(3)
            new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            new.start()
            new.join()
            held.run(lambda part: seen.append(torch.get_num_threads()) if part else None)
            assert torch.get_num_threads() == number and seen == [number, 1, 1]
            seen.clear()
    finally:
        torch.set_num_threads(before)


def test_threads_end_with_their_owner_and_hold_nothing() -> None:
    class Held:
        pass

    held = Held()
    gone, threads = weakref.ref(held), Workers(3)
    started = list(threads._threads)
    threads.run(lambda part, held=held: None)  # type: ignore[misc]
    del held
    end = time.monotonic() + 60
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert gone() is None and threads.alive
    del threads
    gc.collect()
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


def test_a_thread_that_is_gone_is_an_error_and_no_endless_wait() -> None:
    threads, job, _ = job_of(2)
    threads._tasks[0].put(None)
    threads._threads[0].join(60)
    assert not threads.alive
    with pytest.raises(RuntimeError, match="a thread of the engine is gone"):
        job(torch.randn(2, 3, 6, 6))


def test_a_thread_that_finds_no_job_falls_asleep() -> None:
    signals, job = np.zeros(interpreter.STATE + 2, dtype=np.int64), np.zeros(interpreter.JOB, dtype=np.int64)
    assert ready()(signals, job, 1, 2, 0)
    assert signals[interpreter.STATE + 1] == interpreter.ASLEEP
    assert not ready()(signals, job, 0, 2, 10)  # nothing is given to a thread asleep
    assert signals[interpreter.GIVEN] == 0
