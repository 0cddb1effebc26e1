"""sparsify export"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from sparsify.errors import SparsifyError
from sparsify.export.registry import FORMATS, check_format, check_place, format_of
from sparsify.hardware import MOST_THREADS

from .paths import saved_model
from .view.report import written_line
from .view.show import say
from .view.shrinking import check_options, example_inputs, shrunk

if TYPE_CHECKING:
    from torch import nn

    from sparsify.formats.file.inspection import FileSummary
    from sparsify.surgery.channels.analyse import Dead


class _WithFormats(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Formats"):
            formatter.write_dl([(name, row.help) for name, row in FORMATS.items()])


@click.command("export", cls=_WithFormats)
@click.argument("source", metavar="RUN|FILE|hf:OWNER/NAME")
@click.option("--out", required=True, metavar="PATH", help="File to write, or folder for a format that is one.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(list(FORMATS)),
    metavar="NAME",
    help="One of the formats below.  [default: by the suffix of --out: .onnx, .pt2; hub for a folder; else sparse]",
)
@click.option("--masks-only", is_flag=True, help="The same as --format masks.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    metavar="TYPE",
    help="Cast floating values: float32, float16 or bfloat16.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Fix the size of the batch, which may vary otherwise; engine: tune for it.  [default: 1]",
)
@click.option(
    "--dynamic",
    metavar="DIMS",
    help="onnx, pt2: which dimensions of the input may vary, by number and name: 0:batch,2:height,3:width.  "
    "[default: 0:batch]",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, MOST_THREADS),
    help="engine: tune for N threads.  [default: torch's number]",
)
@click.option("--shrink", is_flag=True, help="First remove channels that cannot influence the output.")
@click.option("--round-to", type=click.IntRange(min=1), help="With --shrink: keep channel counts at multiples of this.")
@click.option(
    "--dead",
    type=click.Choice(["masks", "zeros"]),
    help="With --shrink: remove what masks make dead (masks), or also what zero weights do (zeros).  "
    "[default: zeros for onnx, pt2 and engine, else masks]",
)
def command(
    source: str,
    out: str,
    layout: str | None,
    masks_only: bool,
    dtype: str | None,
    batch_size: int | None,
    dynamic: str | None,
    threads: int | None,
    shrink: bool,
    round_to: int | None,
    dead: Dead | None,
) -> None:
    """Write the model of a run, or of a file, in a format of your choice."""
    check_options("export", shrink, round_to=round_to, dead=dead)
    if masks_only:
        if layout not in (None, "sparse", "masks"):
            raise SparsifyError(f"export: either --masks-only or --format {layout}")
        layout = "masks"
    layout = format_of(out, layout, where="export")
    options: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "threads": threads}
    options["dynamic_shapes"] = None if dynamic is None else _dimensions(dynamic)
    given = [name for name, value in options.items() if value is not None]
    row = check_format(layout, given, where="export", spelled=_spelled)
    path = saved_model(source)
    check_place(row, out)
    from sparsify.export.save import inspect_file, load, write

    known = inspect_file(path)
    model = load(path)
    usual: Dead = "masks" if row.trainable else "zeros"
    if shrink:
        model = shrunk(model, _input_shape(known, model, "use sparsify.shrink"), round_to, dead or usual)
    if "example_input" in row.takes:
        shape = _input_shape(known, model, f"use sparsify.save(model, path, format='{layout}', example_input=...)")
        options["example_input"] = example_inputs(model, 1, shape)
    keys = ("spec", "arguments", "recipe", "seeds", "metrics", "extra")
    about = {name: getattr(known.metadata, name) for name in keys}
    written = write(model, out, layout, about, options)
    say(written_line(out, written.size, known.bytes_original, model), *written.notes)
    if layout == "onnx" and out.lower().endswith(".onnx") and "preprocess" in known.metadata.extra:
        say("next:", f"  sparsify predict {quote(out)} IMAGE...")


def _spelled(option: str) -> str:
    return "--dynamic" if option == "dynamic_shapes" else f"--{option.replace('_', '-')}"


def _dimensions(text: str) -> dict[int, str]:
    """Return the name of each dimension in "0:batch,2:height"; one without a name is named by its number."""
    found = {}
    for part in text.split(",") if text else ():
        number, _, name = part.strip().partition(":")
        if not number.isdecimal() or (name and not name.isidentifier()):
            raise SparsifyError(f"export: --dynamic: '{part}' is given, a dimension is needed as in 0:batch,2:height")
        found[int(number)] = name or ("batch" if int(number) == 0 else f"size{number}")
    return found


def _input_shape(known: FileSummary, model: nn.Module, instead: str) -> tuple[int, ...]:
    from sparsify.declared_inputs import declared_inputs

    shape = known.metadata.extra.get("input_shape") or ()
    if not shape and declared_inputs(model, 1) is None:
        raise SparsifyError(f"export: {known.path} does not say what its model takes (input_shape): {instead}")
    return tuple(shape)
