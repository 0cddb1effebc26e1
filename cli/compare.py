"""sparsify compare"""

from __future__ import annotations

from pathlib import Path

import click

from .view.show import print_table, say


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--csv", "rows", metavar="FILE", help="Also write a row for each run.")
@click.option("--figure", metavar="FILE", help="Draw accuracy over sparsity: .svg or .png.")
def command(runs: tuple[str, ...], rows: str | None, figure: str | None) -> None:
    """Compare finished runs: mean and standard deviation over seeds, paired differences, sizes.

    Runs of one recipe with different seeds become one line; the others are compared with a dense recipe, or the first.
    """
    from sparsify.report.comparison import compare
    from sparsify.report.run_records import read_run

    from .view.comparison import check_figure, comparison_lines, comparison_table, write_figure, write_rows

    if figure is not None:
        check_figure(figure)
    if rows is not None:
        from sparsify.formats.io.atomic import check_writable

        check_writable(rows)
    cells = compare([read_run(run) for run in runs])
    print_table(comparison_table(cells))
    say(*comparison_lines(cells))
    if rows is not None:
        write_rows(cells, Path(rows))
        say(f"{rows}: a row for each run")
    if figure is not None:
        write_figure(cells, figure)
        say(f"{figure}: accuracy over sparsity")
