"""Runs of the command line in processes of their own, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
Hook = tuple[Any, ...]


@dataclass
class Started:
    """A command that runs, and the file that gets its standard error."""

    process: BaseProcess
    err: Path

    def end(self) -> tuple[int | None, str]:
        """Wait for its end and return exit code (minus a signal's number if that ended it) and standard error."""
        self.process.join(300)
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode, self.err.read_text()


def start(*arguments: object, err: Path, hook: Hook = ()) -> Started:
    """Start `sparsify` with `arguments`; `hook`, a function and its arguments, is called first."""
    assert _CONTEXT is not None
    _CONTEXT.set_forkserver_preload(["cli.train", "cli.view.progress", "sparsify.training.run.train", "timm.optim"])
    process = _CONTEXT.Process(target=_main, args=([str(one) for one in arguments], str(err), hook))
    process.start()
    return Started(process, err)


def run(*arguments: object, err: Path, hook: Hook = ()) -> tuple[int | None, str]:
    """Run `sparsify` with `arguments` to its end; return as `Started.end` does."""
    return start(*arguments, err=err, hook=hook).end()


def nth_call(place: str, number: int, action: Callable[[], object]) -> None:
    """Call `action` before the call number `number` (from 1) of a function; `place` is its module:qualified name."""
    module, _, name = place.partition(":")
    *owners, last = name.split(".")
    owner: Any = import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    function, calls = getattr(owner, last), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*args, **kwargs)

    setattr(owner, last, counted)


def signal_at(place: str, number: int, *signals: int) -> None:
    """Let this process send itself `signals` at a call, as `nth_call` counts."""

    def send() -> None:
        for one in signals:
            os.kill(os.getpid(), one)

    nth_call(place, number, send)


def _main(arguments: Sequence[str], err: str, hook: Hook) -> None:
    import torch

    from cli import main

    os.chdir(ROOT)
    for descriptor, file in ((1, os.devnull), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    # Deaf to these where the tests run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    torch.set_num_threads(1)
    if hook:
        function, *rest = hook
        function(*rest)
    main(arguments)
