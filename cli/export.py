"""sparsify export"""

from __future__ import annotations

import click

from sparsify.errors import SparsifyError

from .paths import saved_model
from .report import file_line
from .show import say
from .shrinking import shrunk


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
@click.option("--shrink", is_flag=True, help="First take channels of no influence out of the model, with proof.")
@click.option("--round-to", type=click.IntRange(min=1), help="With --shrink: keep channel counts at multiples of this.")
def command(source: str, out: str, layout: str, dtype: str | None, shrink: bool, round_to: int | None) -> None:
    """Write the model of a run, or of a file, to a small safetensors file."""
    from sparsify.formats.atomic import check_writable

    if round_to is not None and not shrink:
        raise SparsifyError("export: --round-to belongs to --shrink")
    path = saved_model(source)
    check_writable(out)
    from sparsify.formats.files import inspect_file, load, save

    given = inspect_file(path)
    about = given.metadata
    model = load(path)
    if shrink:
        shape = about.extra.get("input_shape")
        if not shape:
            raise SparsifyError(f"export: {path} does not say what its model takes (input_shape): use sparsify.shrink")
        model = shrunk(model, tuple(shape), round_to)
    save(
        model,
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
    say(file_line(inspect_file(out)))
