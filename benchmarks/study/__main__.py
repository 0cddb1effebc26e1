"""Runs a study and writes its section of results.md: python -m benchmarks.study cifar100_small.yaml --jobs 2

Run it from the root of the repository. Finished runs are rows of benchmarks/study/runs.csv and never run again.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click

from sparsify.errors import SparsifyError

from .queue import work
from .rows import RUNS
from .study import read_study


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each run.  [default: cores / jobs]")
@click.option("--budget", type=float, help="Part of the study's epochs, cycles and ramps.  [default: the file's]")
@click.option("--data-dir", help="Folder that holds the data set.")
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--work", "folder", type=click.Path(path_type=Path), help="Folders of the runs.  [default: runs/STUDY]")
@click.option("--csv", "rows", type=click.Path(path_type=Path), default=RUNS, help="Rows of the finished runs.")
def main(
    study: Path,
    jobs: int,
    threads: int | None,
    budget: float | None,
    data_dir: str | None,
    device: str | None,
    folder: Path | None,
    rows: Path,
) -> None:
    """Run what is not finished of STUDY, a YAML file of this folder or a path."""
    found = read_study(study, budget=budget, data_dir=data_dir, device=device)
    place = folder or Path("runs") / found.name
    share = max(1, (os.cpu_count() or 1) // jobs)
    failed = work(found, rows, place, jobs=jobs, threads=threads or share, say=partial(print, flush=True))
    if failed:
        sys.exit(f"{len(failed)} runs failed; started again, the queue tries them again")


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except SparsifyError as error:
        sys.exit(f"error: {error}")
