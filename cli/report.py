"""sparsify report"""

from __future__ import annotations

import click

from .view.show import byte_count, count, say


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--out", metavar="FILE", default="report.html", show_default=True, help="File to write the page to.")
@click.option("--figures", metavar="DIR", help="Write each figure into this folder too, as .svg and as .png.")
def command(runs: tuple[str, ...], out: str, figures: str | None) -> None:
    """Write one HTML page about a run, or several side by side; it needs no network.

    Runs of one recipe with different seeds are averaged; needs pip install 'sparsify-torch[report]'.
    """
    from sparsify.report.page.write import write

    written = write(runs, out, figures=figures)
    say(f"{out}: {count(len(runs), 'run')}, {byte_count(written[0].stat().st_size)}")
    if figures is not None:
        say(f"{figures}: {count(len(written) - 1, 'file')}")
