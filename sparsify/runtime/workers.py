"""Threads that wait for work: compiled code runs in them at once, as it lets go of the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from . import kernels

Array = np.ndarray[Any, Any]
Task = Callable[[], None] | None  # None: look for jobs


class Workers:
    """`count` threads, the caller's own among them. They end with the interpreter, or when this object goes.

    One call of `run` or `split` at a time.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._signals = np.zeros(kernels.ASLEEP + count, dtype=np.int64)
        self._signals[kernels.ASLEEP :] = 1
        self._job = np.zeros(17, dtype=np.int64)
        self._ended = 0
        self._tasks: list[SimpleQueue[tuple[Task] | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        for part, tasks in enumerate(self._tasks, 1):
            given = (tasks, self._done, self._signals, self._job, part, count)
            threading.Thread(target=_work, args=given, daemon=True).start()

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(0) .. task(count - 1), each in a thread, and wait for all. Raises the error of any."""
        for index, tasks in enumerate(self._tasks, 1):
            tasks.put((lambda index=index: task(index),))  # type: ignore[misc]
        error: BaseException | None = None
        try:
            task(0)
        except BaseException as found:  # noqa: BLE001 - the others must be waited for first
            error = found
        for _ in self._tasks:
            error = self._done.get() or error
        if error is not None:
            raise error

    def split(self, arrays: Sequence[Array]) -> None:
        """Go through the steps of `kernels.run`, whose arrays are given, all threads at once.

        Threads that had a job a moment ago take the next one without the interpreter, whose lock and whose waking of
        threads take as long as a small network.
        """
        if self.count > 1:
            self._job[:] = [number for array in arrays for number in (array.ctypes.data, array.size)] + [self._ended]
            kernels.give(self._signals)
            for part, tasks in enumerate(self._tasks, 1):
                if kernels.wake(self._signals, part):
                    tasks.put((None,))
        kernels.run(*arrays, self._signals, self._ended, 0, self.count)
        # Nobody reads the job any more: all have ended the last step.
        self._ended += len(arrays[0]) * self.count

    def __del__(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)


def _work(
    tasks: SimpleQueue[tuple[Task] | None],
    done: SimpleQueue[BaseException | None],
    signals: Array,
    job: Array,
    part: int,
    parts: int,
) -> None:
    # torch's own pool in every one of these threads would be more threads than cores.
    torch.set_num_threads(1)
    jobs = 0
    while (given := tasks.get()) is not None:
        task = given[0]
        if task is None:
            jobs = kernels.serve(signals, job, part, parts, jobs)
            continue
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            done.put(error)
        else:
            done.put(None)
