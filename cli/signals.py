"""Signals that stop a command: it tidies up, a run writes a checkpoint, and it exits with the signal's code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SHOW_CURSOR = b"\x1b[?25h"


class Signals:
    """Handles the signals that stop a command, within a `with` block.

    The first one raises KeyboardInterrupt or, once `gentle` is set, is only recorded for the run (`asked`). A second
    one ends the process at once. A signal that was ignored before (`nohup`, a shell's background) stays ignored. `code`
    is the exit code of the signal received, 130 without one; `after` is what a second one says of what goes on.
    """

    def __init__(self, after: str = "") -> None:
        self.gentle = False
        self._after = after
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    @property
    def code(self) -> int:
        """The exit code for the signal received."""
        return 128 + (self._received or signal.SIGINT)

    def asked(self) -> bool:
        """Return whether a signal was received."""
        return self._received is not None

    def __enter__(self) -> Signals:
        # Python lets the main thread alone handle signals.
        for name in _NAMES if threading.current_thread() is threading.main_thread() else ():
            number = getattr(signal, name, None)  # Windows has two of them
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            self._end_at_once(number)
        self._received = number
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminal()
        if not self.gentle:
            raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """Redirect output from a closed terminal: writing to it would fail, and the run with it."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

    def _end_at_once(self, number: int) -> NoReturn:
        if 1 in self._terminals and os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        sys.stderr.flush()
        os.write(2, f"sparsify: ended at once{self._after}\n".encode())
        os._exit(128 + number)
