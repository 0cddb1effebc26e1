"""sparsify import"""

from __future__ import annotations

import click

from .view.show import byte_count, count, percent, say


@click.command("import")
@click.argument("source", metavar="FILE|FOLDER")
@click.option("--out", required=True, metavar="FILE", help="Dense safetensors file to write.")
def command(source: str, out: str) -> None:
    """Convert sparse weights of compressed-tensors to dense ones, for any reader of safetensors.

    Reads the sparse-bitmask and sparse-24-bitmask weights of all releases: a file, or a folder with a file or shards.
    Current libraries load random weights from these without an error.
    """
    from sparsify.export.import_weights import import_weights

    done = import_weights(source, out)
    share = percent(done.zeros / done.entries) if done.entries else "0.0 %"
    made = f"{count(len(done.weights), 'weight')} made dense, {share} of their numbers are zero"
    say(f"{out}: {byte_count(done.size)}; {made}")
