"""A queue of runs: several at a time, each in its own process, which ends with the queue. Needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunWarning, SparsifyError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0  # that a run may take to write its checkpoint when it is asked to stop


@dataclass(frozen=True)
class Job:
    """One run: its name in messages, the command that starts or resumes it, its log file, its working directory."""

    name: str
    command: tuple[str, ...]
    log: Path
    cwd: Path | None = None


def work(
    jobs: Sequence[Job],
    lock: Path,
    *,
    at_once: int = 1,
    threads: int = 1,
    finished: Callable[[Job], str | None],
    say: Callable[[str], None] = print,
) -> list[Job]:
    """Run `jobs` in order, `at_once` at a time with `threads` threads each; return those that failed.

    `finished` is called for a job with exit code 0 and returns its result as text, or None if it left none, which is a
    failure too. If the queue is killed, its jobs end too; if it is stopped, they get time to write a checkpoint. Raises
    SparsifyError if another queue holds the file `lock`.
    """
    waiting, failed = list(jobs), list[Job]()
    active: dict[Job, subprocess.Popen[bytes]] = {}
    with _only_queue(lock) as held:
        try:
            while waiting or active:
                while waiting and len(active) < at_once:
                    job = waiting.pop(0)
                    active[job] = _start(job, threads, held)
                    say(f"{_clock()} started {job.name}")
                for job in [job for job, process in active.items() if process.poll() is not None]:
                    failed += _finish(job, active.pop(job).returncode, finished, say)
                if active:
                    time.sleep(_POLL_SECONDS)
        finally:
            _stop([*active.values()])
    return failed


@contextmanager
def _only_queue(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of a lock that runs hold too, since they may outlive a killed queue for a moment."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise SparsifyError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        if fcntl is None:
            text = f"{folder}: cannot be locked on this system: do not run two queues in it"
            warnings.warn(text, RunWarning, stacklevel=2)
            yield None
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"{folder}: another queue, or a run of one that was killed, is at work here"
            raise SparsifyError(text) from None
        yield lock
    finally:
        os.close(lock)


def _start(job: Job, threads: int, lock: int | None) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [*job.command],
            cwd=job.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[] if lock is None else [lock],
            # So that Ctrl-C reaches only the queue, which then asks its runs to stop.
            start_new_session=True,
        )


def _stop(active: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the runs to stop, then kill those that do not."""
    for process in active:
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    for process in active:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _finish(job: Job, code: int, finished: Callable[[Job], str | None], say: Callable[[str], None]) -> list[Job]:
    """Report the result of a job that ended with `code`; return the job in a list if it failed, else []."""
    result = finished(job) if code == 0 else None
    if result is None:
        lines = job.log.read_text(errors="replace").strip().splitlines() or ["nothing in its log"]
        say(f"{_clock()} FAILED {job.name} (exit {code}): {lines[-1]}; see {job.log}")
        return [job]
    say(f"{_clock()} finished {job.name}: {result}")
    return []


def _clock() -> str:
    return time.strftime("%H:%M:%S")
