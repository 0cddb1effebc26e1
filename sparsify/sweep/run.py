"""Run a sweep through the queue: finished runs do not run again, killed ones resume. Needs no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SparsifyError
from ..formats.io.atomic import atomic_write
from ..report.run_records import read_run
from ..training.folder import run_folder as folders
from .queue import Job, work
from .vary import SweepRun


def is_finished(run: SweepRun) -> bool:
    """Return whether a run is finished; raises SparsifyError with the keys if its folder has another recipe."""
    if not os.path.exists(run.folder / folders.RECIPE):
        return False
    folders.check_same(run.folder, run.recipe)
    return os.path.exists(run.folder / folders.MODEL)


def run_all(
    runs: Sequence[SweepRun], folder: Path, *, jobs: int = 1, threads: int = 1, say: Callable[[str], None] = print
) -> list[SweepRun]:
    """Run the unfinished runs, `jobs` at a time with `threads` threads each; return those that failed.

    Several queues with one run each, as in a job array, may work in one folder at the same time.
    """
    waiting = [run for run in runs if not is_finished(run)]
    say(f"{folder}: {len(runs) - len(waiting)} of {len(runs)} runs are finished")
    if not waiting:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparsifyError(f"{folder}: cannot be written ({error.strerror})") from None
    found = {run.name: run for run in runs}
    lock = beside(runs[0].folder, ".lock") if len(runs) == 1 else folder / "lock"

    def finished(job: Job) -> str | None:
        """Return the accuracy and seconds of a finished run as text, None if it left no result."""
        run = found[job.name]
        if not is_finished(run):
            return None
        result = read_run(run.folder)
        reached = "" if result.accuracy is None else f"{result.accuracy:.2%} at the end, "
        return f"{reached}{result.records[-1].get('seconds', 0.0):,.0f} s"

    started = [_job(run, threads) for run in waiting]
    failed = work(started, lock, at_once=jobs, threads=threads, finished=finished, say=say)
    return [found[job.name] for job in failed]


def _job(run: SweepRun, threads: int) -> Job:
    recipe = beside(run.folder, ".yaml")
    atomic_write(recipe, run.recipe.to_yaml().encode())
    command = (sys.executable, "-m", "sparsify.sweep.worker", str(recipe), str(run.folder), str(threads))
    return Job(run.name, command, beside(run.folder, ".log"))


def beside(folder: Path, ending: str) -> Path:
    """Return the path next to a run's folder with the folder's name and `ending`."""
    return folder.with_name(folder.name + ending)
