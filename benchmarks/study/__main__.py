"""Runs a study and writes its section of results.md: python -m benchmarks.study cifar100_small.yaml --jobs 2

Run it from the root of the repository. Finished runs are rows of benchmarks/study/runs.csv and never run again; a
killed queue resumes its runs from their checkpoints. See benchmarks/study/README.md.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import click

from benchmarks.record import RESULTS, record
from sparsify.errors import SparsifyError

from .figures import draw
from .overlap import COLUMNS as OVERLAP_COLUMNS
from .overlap import write_overlap
from .plan import plan_lines
from .queue import work
from .report import rows_of, section
from .rows import COLUMNS, CURVE_COLUMNS, RUNS, beside, read_rows, take_rows
from .study import Study, read_study

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("study", type=_PATH)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each run.  [default: cores / jobs]")
@click.option("--budget", type=float, help="Part of the study's epochs, cycles and ramps.  [default: the file's, or 1]")
@click.option("--data-dir", help="Folder that holds the data set.")
@click.option("--device", help="auto, cpu or cuda:N.")
@click.option("--work", "folder", type=_PATH, help="Folder of the runs' folders.  [default: runs/STUDY]")
@click.option("--csv", "rows", type=_PATH, default=RUNS, help="Rows of the finished runs.")
@click.option("--results", type=_PATH, default=RESULTS, help="Where the section is written.")
@click.option("--report", is_flag=True, help="Run nothing; write the section of what is finished.")
@click.option("--take", type=_PATH, help="A runs.csv of another checkout, whose rows are added first.")
@click.option("--plan", is_flag=True, help="Run nothing; print how long the study takes.")
@click.option("--epoch-seconds", metavar="MODEL=S", multiple=True, help="With --plan: assume it rather than measure.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="With --plan: steps measured.")
def main(
    study: Path,
    jobs: int,
    threads: int | None,
    budget: float | None,
    data_dir: str | None,
    device: str | None,
    folder: Path | None,
    rows: Path,
    results: Path,
    report: bool,
    take: Path | None,
    plan: bool,
    epoch_seconds: tuple[str, ...],
    steps: int,
) -> None:
    """Run what is not finished of STUDY, a YAML file of this folder or a path, and write its section."""
    found = read_study(study, budget=budget, data_dir=data_dir, device=device)
    if plan:
        for line in plan_lines(found, _assumed(epoch_seconds, found), steps):
            print(line, flush=True)
        return
    place = folder or Path("runs") / found.name
    if take is not None:
        for columns, name in ((COLUMNS, "runs"), (CURVE_COLUMNS, "curves"), (OVERLAP_COLUMNS, "overlap")):
            take_rows(beside(rows, name), columns, beside(take, name))
    failed = []
    if not report:
        share = max(1, (os.cpu_count() or 1) // jobs)
        failed = work(found, rows, place, jobs=jobs, threads=threads or share, say=partial(print, flush=True))
    write_section(found, rows, place, results)
    if failed:
        sys.exit(f"{len(failed)} runs failed; started again, the queue tries them again")


def write_section(study: Study, runs: Path, folder: Path, results: Path) -> None:
    """Write the study's section of `results` from the rows, and figures and overlap.csv beside the rows."""
    rows = rows_of(study, read_rows(runs))
    curves = rows_of(study, read_rows(beside(runs, "curves")))
    write_overlap(study, rows, folder, beside(runs, "overlap"))
    overlap = rows_of(study, read_rows(beside(runs, "overlap")))
    drawn = draw(study, rows, curves, runs.parent)
    links = [os.path.relpath(path, results.parent) for path in drawn]
    record(f"study: {study.name}", section(study, rows, curves, overlap, links), results)


def _assumed(given: tuple[str, ...], study: Study) -> dict[str, float]:
    assumed = {}
    for item in given:
        model, _, seconds = item.partition("=")
        try:
            assumed[model] = float(seconds)
        except ValueError:
            raise SparsifyError(f"--epoch-seconds {item}: it is written MODEL=SECONDS, e.g. resnet32=3") from None
        if model not in study.models:
            raise SparsifyError(f"--epoch-seconds {item}: the study has no model '{model}', only {study.models}")
    return assumed


if __name__ == "__main__":
    try:
        main()
    except SparsifyError as error:
        sys.exit(f"error: {error}")
