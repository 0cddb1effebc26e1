"""Work that no signal handler can interrupt: Python runs handlers in the main thread, so another thread does it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_one_at_a_time = threading.RLock()


def untorn(work: Callable[[], T]) -> T:
    """Return the result of `work`; only one runs at a time in the process.

    Called from the main thread, it runs in another thread, and an exception of a signal handler (Ctrl-C) is raised when
    it is done. That thread has its own modes of torch: gradients are on.
    """
    if threading.current_thread() is not threading.main_thread():
        with _one_at_a_time:
            return work()
    found: list[tuple[bool, Any]] = []
    done = threading.Event()

    def target() -> None:
        """Run `work` and store its result or exception."""
        try:
            with _one_at_a_time:
                found.append((True, work()))
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            found.append((False, error))
        done.set()

    thread = threading.Thread(target=target, name="sparsify: untorn work")
    raised: BaseException | None = None
    started = False
    while not found:
        try:
            if not started:
                started = True
                thread.start()
            done.wait()
        except BaseException as error:  # noqa: BLE001 - raised when the work is done
            raised = error
            if not thread.is_alive() and not found:
                raise
    right, value = found[0]
    if raised is not None:
        raise raised
    if not right:
        raise value
    result: T = value
    return result


def _forget() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    # Forks wait for running work, whose locks would stay locked in the child.
    os.register_at_fork(
        before=lambda: _one_at_a_time.acquire(),
        after_in_parent=lambda: _one_at_a_time.release(),
        after_in_child=_forget,
    )
