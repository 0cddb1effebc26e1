"""sparsify export"""

from __future__ import annotations

import click

from .paths import saved_model
from .show import byte_count, percent, say


@click.command("export")
@click.argument("source", metavar="RUN|FILE")
@click.option("--out", required=True, metavar="FILE", help="Where the file goes.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["sparse", "dense"]),
    default="sparse",
    show_default=True,
    metavar="NAME",
    help="sparse: masks and kept values; dense: the dense model's own keys with zeros, for any reader.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    metavar="TYPE",
    help="Cast floating values: float32, float16 or bfloat16.",
)
def command(source: str, out: str, layout: str, dtype: str | None) -> None:
    """Write the model of a run, or of a file, to a small safetensors file."""
    from sparsify.formats.atomic import check_writable

    path = saved_model(source)
    check_writable(out)
    from sparsify.formats.files import inspect_file, load, save

    given = inspect_file(path)
    about = given.metadata
    size = save(
        load(path),
        out,
        spec=about.spec,
        arguments=about.arguments,
        recipe=about.recipe,
        seeds=about.seeds,
        metrics=about.metrics,
        extra=about.extra,
        dtype=dtype,
        format=layout,
    )
    sparsity = "" if given.sparsity is None else f"{percent(given.sparsity)} sparse, "
    share = percent(size / given.bytes_dense)
    say(f"{out}: {sparsity}{byte_count(size)}, {share} of the dense {byte_count(given.bytes_dense)}")
