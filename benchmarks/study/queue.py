"""The queue of a study: parallel runs, each in its own process and folder; a row for each finished one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from sparsify.formats.io.atomic import atomic_write
from sparsify.sweep import queue
from sparsify.sweep.queue import Job
from sparsify.sweep.run import beside

from .rows import key_of, read_rows, write_finished
from .study import ROOT, Run, Study
from .worker import RESULT


def pending(study: Study, rows: Path) -> list[Run]:
    """Return the runs that have no row yet, in order."""
    done = {key_of(row) for row in read_rows(rows)}
    return [run for run in study.runs if run.key not in done]


def work(
    study: Study, rows: Path, folder: Path, *, jobs: int = 1, threads: int = 1, say: Callable[[str], None] = print
) -> list[Run]:
    """Run what is not finished, `jobs` at a time with `threads` threads each; return the runs that failed.

    `folder` holds a folder of each run. When the queue is killed its runs end with it; started again, it resumes
    them from their last checkpoints. Raises SparsifyError if another queue works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = pending(study, rows)
    say(f"{study.name}: {len(study.runs) - len(waiting)} of {len(study.runs)} runs are finished")
    found = {run.name: run for run in waiting}

    def finished(job: Job) -> str | None:
        """Write the row of a run that succeeded."""
        run = found[job.name]
        place = folder_of(run, folder)
        if not (place / RESULT).exists():
            return None
        measures = json.loads((place / RESULT).read_text())
        write_finished(rows, run, place, measures)
        return f"{measures['final_accuracy']:.2%} at the end, {measures['seconds']:,.0f} s"

    started = [_job(run, folder, threads) for run in waiting]
    failed = queue.work(started, folder / "lock", at_once=jobs, threads=threads, finished=finished, say=say)
    return [found[job.name] for job in failed]


def folder_of(run: Run, folder: Path) -> Path:
    """Return a run's folder, which depends on its recipe."""
    return folder / f"{run.name}-{run.hash}"


def _job(run: Run, folder: Path, threads: int) -> Job:
    place = folder_of(run, folder)
    recipe = beside(place, ".yaml")
    atomic_write(recipe, run.recipe.to_yaml().encode())
    command = (sys.executable, "-m", "benchmarks.study.worker", str(recipe.resolve()), str(place.resolve()))
    return Job(run.name, (*command, str(threads)), beside(place, ".log"), ROOT)
