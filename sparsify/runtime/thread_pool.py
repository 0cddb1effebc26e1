"""Threads that wait for work: compiled code runs in them at once, as it lets go of the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from .kernels import interpreter
from .kernels.jit import ready
from .signal_safe import untorn

Array = np.ndarray[Any, Any]
Task = Callable[[], object]


class Workers:
    """`count` threads, the caller's own among them. They end with the interpreter, or when this object goes.

    One call of `run` or `split` at a time. Whatever a signal handler raises in the middle of one, the next is whole.
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
        """Whether all threads are there: none are in a child of fork."""
        return all(thread.is_alive() for thread in self._threads)

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(0) .. task(count - 1), each in a thread, and wait for all. Raises the error of any.

        What is raised while it waits goes to the caller at once; a task that is not done then is done before the
        thread's next one.
        """
        # A queue for this call alone: nobody takes what a task that was left says for the end of a later one.
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for index, tasks in enumerate(self._tasks, 1):
            tasks.put(partial(_tell, done, partial(task, index)))
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
        """Go through the instructions of `interpreter.run`, whose arrays are given, all threads at once.

        Threads that had a job a moment ago take the next one without the interpreter, whose lock and whose waking of
        threads take as long as a small network. The job itself is one call of compiled code.
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
    """Return addresses and sizes of arrays, one after the other."""
    return [number for array in arrays for number in (array.ctypes.data, array.size)]


def _start(tasks: Sequence[SimpleQueue[Task | None]], torch_threads: int) -> list[threading.Thread]:
    """Return a thread for each queue, all of them ready."""
    ready: SimpleQueue[None] = SimpleQueue()
    threads = [threading.Thread(target=_work, args=(one, ready), daemon=True) for one in tasks]
    for thread in threads:
        thread.start()
        ready.get()
    # What one thread sets is what threads that are yet to come begin with.
    torch.set_num_threads(torch_threads)
    return threads


def _work(tasks: SimpleQueue[Task | None], ready: SimpleQueue[None]) -> None:
    # torch's own pool in every one of these threads would be more threads than cores. The first look takes what others
    # have set, and would do so later if there were none now.
    torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ready.put(None)
    while True:
        task = tasks.get()
        if task is None:
            return
        task()
        # Nothing of an engine is kept alive by a thread that waits.
        del task


def _tell(done: SimpleQueue[BaseException | None], task: Task) -> None:
    """Do a task and say that it is done, with its error if it has one."""
    try:
        task()
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        done.put(error)
    else:
        done.put(None)
