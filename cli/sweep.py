"""sparsify sweep"""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsify.errors import RunError, SparsifyError
from sparsify.hardware import MOST_THREADS

from .main import Stopped
from .view.show import count, print_table, say

if TYPE_CHECKING:
    from sparsify.sweep.vary import SweepRun

_COUNT = click.IntRange(min=1)


@click.command("sweep")
@click.argument("recipe")
@click.option("--vary", metavar="KEY=[VALUE,...]", multiple=True, help="A key and its values; repeatable.")
@click.option("--seeds", metavar="N|S1,S2", default="3", show_default=True, help="Number of seeds, or a list of them.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key in all runs; repeatable.")
@click.option("--jobs", metavar="N", type=_COUNT, default=1, show_default=True, help="Runs in parallel.")
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, MOST_THREADS), help="Threads of each run.  [default: cores / jobs]"
)
@click.option("--out", metavar="DIR", help="Folder of the runs' folders.  [default: runs/sweep-RECIPE]")
@click.option("--list", "as_list", is_flag=True, help="Print the command of each run, for a job array; run nothing.")
@click.option("--only", metavar="N", type=_COUNT, help="Run the N-th run alone, counted from 1.")
def command(
    recipe: str,
    vary: tuple[str, ...],
    seeds: str,
    overrides: tuple[str, ...],
    jobs: int,
    threads: int | None,
    out: str | None,
    as_list: bool,
    only: int | None,
) -> None:
    """Run RECIPE with every combination of varied values and every seed; then compare the runs.

    The same command resumes a killed sweep; finished runs are kept. The folder gets sweep.csv and, with the extra
    sparsify-torch[report], sweep.svg.
    """
    from sparsify.sweep.vary import parse_seeds, parse_varied, sweep_runs

    if as_list and only is not None:
        raise SparsifyError("sweep: either --list or --only")
    folder = Path(out) if out else Path("runs") / f"sweep-{Path(recipe).stem}"
    runs = sweep_runs(recipe, [parse_varied(text) for text in vary], parse_seeds(seeds), folder, overrides)
    if only is not None and only > len(runs):
        raise SparsifyError(f"--only {only}: the sweep has {count(len(runs), 'run')}")
    if as_list:
        _print_commands(len(runs), recipe, vary, seeds, overrides, threads, out)
        return
    chosen = runs if only is None else [runs[only - 1]]
    failed = _run(chosen, folder, jobs, threads or max(1, (os.cpu_count() or 1) // jobs))
    if only is None:
        _show(runs, folder)
    if failed:
        raise RunError(f"{count(len(failed), 'run')} failed; the same command tries them again")


def _print_commands(
    number: int,
    recipe: str,
    vary: tuple[str, ...],
    seeds: str,
    overrides: tuple[str, ...],
    threads: int | None,
    out: str | None,
) -> None:
    """Print the command of each run."""
    given = ["sparsify", "sweep", recipe]
    given += [part for text in vary for part in ("--vary", text)]
    given += ["--seeds", seeds, *(part for text in overrides for part in ("--set", text))]
    given += ["--threads", str(threads)] * (threads is not None) + ["--out", str(out)] * (out is not None)
    for place in range(1, number + 1):
        click.echo(shlex.join([*given, "--only", str(place)]))


def _run(runs: list[SweepRun], folder: Path, jobs: int, threads: int) -> list[SweepRun]:
    from sparsify.sweep.run import run_all

    from .signals import Signals

    signals = Signals("; the same command goes on")
    try:
        with signals:
            return run_all(runs, folder, jobs=jobs, threads=threads, say=partial(print, flush=True))
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on", signals.code) from None


def _show(runs: list[SweepRun], folder: Path) -> None:
    from sparsify.report.comparison import compare
    from sparsify.report.run_records import read_run
    from sparsify.sweep.run import is_finished

    from .view.comparison import check_figure, comparison_lines, comparison_table, write_figure, write_rows

    finished = [run for run in runs if is_finished(run)]
    if not finished:
        return
    if len(finished) < len(runs):
        say(f"partial: {len(finished)} of {count(len(runs), 'run')} are finished")
    cells = compare([read_run(run.folder) for run in finished])
    print_table(comparison_table(cells))
    say(*comparison_lines(cells))
    write_rows(cells, folder / "sweep.csv")
    say(f"{folder / 'sweep.csv'}: a row for each run")
    figure = folder / "sweep.svg"
    try:
        check_figure(str(figure))
    except SparsifyError as error:
        say(f"no figure: {error}")
        return
    write_figure(cells, figure)
    say(f"{figure}: accuracy over sparsity", f"next: sparsify report {shlex.quote(str(folder))}/*/")
