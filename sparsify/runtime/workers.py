"""Threads that wait for work: compiled code runs in them at once, as it lets go of the interpreter's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch


class Workers:
    """`count` threads, the caller's own among them. They end with the interpreter, or when this object goes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._tasks: list[SimpleQueue[Callable[[], None] | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        for tasks in self._tasks:
            threading.Thread(target=_work, args=(tasks, self._done), daemon=True).start()

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(0) .. task(count - 1), each in a thread, and wait for all. Raises the error of any."""
        for index, tasks in enumerate(self._tasks, 1):
            tasks.put(lambda index=index: task(index))  # type: ignore[misc]
        error: BaseException | None = None
        try:
            task(0)
        except BaseException as found:  # noqa: BLE001 - the others must be waited for first
            error = found
        for _ in self._tasks:
            error = self._done.get() or error
        if error is not None:
            raise error

    def __del__(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)


def _work(tasks: SimpleQueue[Callable[[], None] | None], done: SimpleQueue[BaseException | None]) -> None:
    # torch's own pool in every one of these threads would be more threads than cores.
    torch.set_num_threads(1)
    while (task := tasks.get()) is not None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            done.put(error)
        else:
            done.put(None)
