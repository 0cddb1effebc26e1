"""A thread pool for compiled code, which runs in parallel because it releases the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from ..codegen.jit import ready
from ..kernels import interpreter
from .signal_safe import untorn

Array = np.ndarray[Any, Any]
Task = Callable[[], object]


class Workers:
    """`count` threads, including the caller's. They end with the interpreter, or when this object is deleted.

    One call of `run` or `split` at a time. An exception of a signal handler during a call does not affect the next.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._signals = np.zeros(interpreter.STATE + count, dtype=np.int64)
        self._job = np.zeros(interpreter.JOB, dtype=np.int64)
        self._tasks: list[SimpleQueue[Task | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._threads: list[threading.Thread] = []
        if self._tasks:
            tasks, threads = self._tasks, torch.get_num_threads()
            self._threads = untorn(lambda: _start(tasks, threads))

    @property
    def alive(self) -> bool:
        """Whether all threads are alive; in a forked child none is."""
        return all(thread.is_alive() for thread in self._threads)

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(0) .. task(count - 1), each in a thread, and wait for all. Raises the exception of any.

        An exception while waiting is raised at once; a task that is not done then ends before its thread's next one.
        """
        # A queue for this call only, so that an abandoned task is not taken for a later one.
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for index, tasks in enumerate(self._tasks, 1):
            tasks.put(partial(_report, done, partial(task, index)))
        error: BaseException | None = None
        try:
            task(0)
        except BaseException as found:  # noqa: BLE001 - the others must be waited for first
            error = found
        for _ in self._tasks:
            error = done.get() or error
        if error is not None:
            raise error

    def split(self, arrays: Sequence[Array]) -> None:
        """Execute the instructions of `interpreter.run` with these arrays, on all threads at once.

        Threads that had a job a moment ago poll for the next one without Python: the GIL and waking threads take as
        long as a small network. The job itself is one call of compiled code.
        """
        enter = ready()
        self._job[: interpreter.JOB - 1] = numbers(arrays)
        looks = 0
        while not enter(self._signals, self._job, 0, self.count, looks):
            if not self.alive:
                raise RuntimeError("a thread of the engine is gone")
            for part, tasks in enumerate(self._tasks, 1):
                if self._signals[interpreter.STATE + part] == interpreter.ASLEEP and tasks.empty():
                    tasks.put(partial(enter, self._signals, self._job, part, self.count, 0))
            looks = interpreter.WAKING

    def __del__(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)


def numbers(arrays: Sequence[Array]) -> list[int]:
    """Return address and size of each array, in one list."""
    return [number for array in arrays for number in (array.ctypes.data, array.size)]


def _start(tasks: Sequence[SimpleQueue[Task | None]], torch_threads: int) -> list[threading.Thread]:
    """Return a running thread for each queue."""
    ready: SimpleQueue[None] = SimpleQueue()
    threads = [threading.Thread(target=_work, args=(one, ready), daemon=True) for one in tasks]
    for thread in threads:
        thread.start()
        ready.get()
    # A thread's setting becomes the default of later threads.
    torch.set_num_threads(torch_threads)
    return threads


def _work(tasks: SimpleQueue[Task | None], ready: SimpleQueue[None]) -> None:
    # With torch's own pool in each of these threads there would be more threads than cores. The first call reads the
    # process-wide setting, which would otherwise be applied later.
    torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ready.put(None)
    while True:
        task = tasks.get()
        if task is None:
            return
        task()
        # So that a waiting thread keeps no engine alive.
        del task


def _report(done: SimpleQueue[BaseException | None], task: Task) -> None:
    """Run a task and put its exception, or None, into `done`."""
    try:
        task()
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        done.put(error)
    else:
        done.put(None)
