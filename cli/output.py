"""Standard output and error as they are found: closed, or with a reader that goes (`| head`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class _Output:
    """A text stream that falls silent once its reader has gone: what is being done goes on to its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        # Not only here: Python writes what is left in the buffer when it ends.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let a command write to standard output and error whatever became of them, while a `with` block lasts.

    Where the process was started with one of them closed (`>&-`), it is None to Python, and the null device here.
    """
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(cast(TextIO, _Output(sys.stdout or nowhere))),
        redirect_stderr(cast(TextIO, _Output(sys.stderr or nowhere))),
    ):
        yield
