"""The queue of a study: runs side by side, each in a process and a folder of its own; a row for each finished one."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsify.errors import SparsifyError
from sparsify.formats.io.atomic import atomic_write

from .rows import key_of, read_rows, write_finished
from .study import ROOT, Run, Study
from .worker import RESULT

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Started:
    """A run in progress."""

    run: Run
    folder: Path
    process: subprocess.Popen[bytes]


def pending(study: Study, rows: Path) -> list[Run]:
    """Return the runs that have no row yet, in order."""
    done = {key_of(row) for row in read_rows(rows)}
    return [run for run in study.runs if run.key not in done]


def work(
    study: Study, rows: Path, folder: Path, *, jobs: int = 1, threads: int = 1, say: Callable[[str], None] = print
) -> list[Run]:
    """Run what is not finished, `jobs` at a time with `threads` threads each; return the runs that failed.

    `folder` holds a folder of each run. When the queue is killed its runs end with it; started again, it goes on from
    their last checkpoints. Raises SparsifyError if another queue works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SparsifyError(f"{folder}: another queue, or a run of one that was killed, is at work here") from None
    waiting, active, failed = pending(study, rows), list[Started](), list[Run]()
    say(f"{study.name}: {len(study.runs) - len(waiting)} of {len(study.runs)} runs are finished")
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active.append(_start(waiting.pop(0), folder, threads, lock))
                say(f"{_clock()} started {active[-1].run.name}")
            for started in [item for item in active if item.process.poll() is not None]:
                active.remove(started)
                failed += _finish(started, rows, say)
            time.sleep(_POLL_SECONDS)
    finally:
        for started in active:
            started.process.kill()
        for started in active:
            started.process.wait()
        os.close(lock)
    return failed


def folder_of(run: Run, folder: Path) -> Path:
    """Return where a run works; one of another recipe has another place."""
    return folder / f"{run.name}-{run.hash}"


def _start(run: Run, folder: Path, threads: int, lock: int) -> Started:
    place = folder_of(run, folder)
    recipe = place.with_suffix(place.suffix + ".yaml")
    atomic_write(recipe, run.recipe.to_yaml().encode())
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.study.worker", str(recipe.resolve()), str(place.resolve())]
    with place.with_suffix(place.suffix + ".log").open("ab") as log:
        # A run holds the lock as well: it may outlive a killed queue by a moment.
        process = subprocess.Popen(
            [*command, str(threads)], cwd=ROOT, env=environment, stdout=log, stderr=log, pass_fds=[lock]
        )
    return Started(run, place, process)


def _finish(started: Started, rows: Path, say: Callable[[str], None]) -> list[Run]:
    """Write the row of a run that ended well; return those that did not."""
    run, result = started.run, started.folder / RESULT
    if started.process.returncode or not result.exists():
        log = started.folder.with_suffix(started.folder.suffix + ".log")
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing in its log"]
        say(f"{_clock()} FAILED {run.name} (exit {started.process.returncode}): {lines[-1]}; see {log}")
        return [run]
    measures = json.loads(result.read_text())
    write_finished(rows, run, started.folder, measures)
    accuracy, seconds = measures["final_accuracy"], measures["seconds"]
    say(f"{_clock()} finished {run.name}: {accuracy:.2%} at the end, {seconds:,.0f} s")
    return []


def _clock() -> str:
    return time.strftime("%H:%M:%S")
