"""Ways to interrupt a training process, for `benchmarks.kills`."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# Killed at any moment, or while a file is written; stopped by a signal; the disk full from some write on.
WAYS = ("kill -9", "kill -9 in writing", *SIGNALS, "disk full")
_CALLS = ("write", "fsync", "replace", "unlink")  # functions of os that write a file


def end_a_run(arguments: Sequence[str], err: Path, way: str, moments: random.Random, took: float, calls: int) -> str:
    """Run `sparsify` until one of `WAYS` ends it; return "ended", "finished" (before that), or what went wrong.

    The moment is drawn below `took`, the processor seconds of a whole run, or `calls`, its number of calls. Standard
    error goes to `err`.
    """
    if way in ("kill -9 in writing", "disk full"):
        process = start(arguments, err, (way, moments.randint(1, calls)))
    else:
        process = start(arguments, err)
        number = signal.SIGKILL if way == "kill -9" else getattr(signal, way)
        _send(process, number, moments.uniform(0, took))
    process.join()
    told = err.read_text()
    if process.exitcode == 0:
        return "finished"
    if way == "disk full":
        right = process.exitcode == 1 and told.count("\n") == 1 and "no space left" in told
    elif way in SIGNALS:
        # Until the command has started, Python handles the signal.
        number = getattr(signal, way)
        right = process.exitcode in (128 + number, -number) or (not told.startswith("sparsify") and way == "SIGINT")
    else:
        right = process.exitcode == -signal.SIGKILL
    return "ended" if right else f"{way}: exit code {process.exitcode}: {told}"


def _send(process: BaseProcess, number: int, after: float) -> None:
    """Send a signal after so many processor seconds of a process: wall-clock time would include other work."""
    while process.exitcode is None and processor_seconds(process) < after:
        process.join(0.01)
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, number)


def processor_seconds(process: BaseProcess) -> float:
    """Return the processor seconds of a process on this machine (Linux)."""
    try:
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def start(arguments: Sequence[str], err: Path, ending: tuple[str, int] = ("", 0)) -> BaseProcess:
    """Start `sparsify` in a process that has imported it; `ending` is a way and the number of the call to end at."""
    process = CONTEXT.Process(target=_train, args=(list(arguments), str(err), *ending))
    process.start()
    return process


def _train(arguments: Sequence[str], err: str, way: str, number: int) -> None:
    import torch

    from cli import main as sparsify

    for descriptor, file in ((1, os.devnull), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    for name in SIGNALS:  # some are ignored if the benchmark runs in the background
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    torch.set_num_threads(1)
    _count_calls(way, number, Path(f"{err}.calls"))
    sparsify(arguments)


def _count_calls(way: str, number: int, file: Path) -> None:
    """Count calls of `_CALLS` and end the process at that number; without a way, write the count to `file`."""
    done = 0

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its calls counted, and the process ended at the given one."""

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if way == "disk full" and name == "write" and done >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if way == "kill -9 in writing" and done == number:
                if name == "write":
                    function(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if not way:
                file.write_text(str(done))
            return function(*args, **kwargs)

        return call

    for name in _CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
