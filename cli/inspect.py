"""sparsify inspect"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from sparsify.errors import SparsifyError

from .paths import saved_model
from .view.report import conversion_lines
from .view.show import Layer, byte_count, count, fits, layer_table, percent, print_table, say

if TYPE_CHECKING:
    from torch import nn

    from sparsify.formats.file.inspection import FileSummary, TensorRow
    from sparsify.formats.file.mask_file import MaskSummary


@click.command("inspect")
@click.argument("source", metavar="[RUN|FILE|hf:OWNER/NAME]", required=False)
@click.option("--model", metavar="SPEC", help="Show this model with its masks, instead of a file.")
@click.option("--graph", is_flag=True, help="Print the model's torch.fx graph instead of the table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(source: str | None, model: str | None, graph: bool, as_json: bool) -> None:
    """Show the contents of a file, a run or a named model, layer by layer."""
    if (source is None) == (model is None):
        raise SparsifyError("inspect: give either a RUN or FILE, or --model SPEC")
    if graph and as_json:
        raise SparsifyError("inspect: either --graph or --json")
    if graph:
        _print_graph(source, model)
    elif source is not None:
        _print_file(source, as_json)
    elif model is not None:
        _print_model(model, as_json)


def _print_graph(source: str | None, spec: str | None) -> None:
    import sparsify

    model: nn.Module
    if source is not None:
        model = sparsify.load(saved_model(source))
    else:
        assert spec is not None
        model = sparsify.build_model(spec).eval()
        sparsify.convert(model)
    click.echo(str(sparsify.trace(model).graph))


def _print_file(source: str, as_json: bool) -> None:
    from sparsify.formats.file.inspection import inspect_file
    from sparsify.formats.file.mask_file import inspect_masks

    path = saved_model(source)
    masks = inspect_masks(path)
    if masks is not None:
        _print_masks(masks, as_json)
        return
    summary = inspect_file(path)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
        return
    own = [row for row in summary.rows if not row.is_alias]
    changed = [row for row in own if row.kept is not None or row.original is not None or row.added]
    say(*_file_lines(summary))
    layers = [Layer(row.name, row.shape, row.kept, row.original, _encoding(row)) for row in changed or summary.rows]
    headings = ("encoding", "bits/limit")
    tables = [
        layer_table([replace(layer, more=layer.more[:shown]) for layer in layers], headings[:shown])
        for shown in (2, 1, 0)
    ]
    print_table(next((table for table in tables if fits(table)), tables[-1]))


def _encoding(row: TensorRow) -> tuple[str, str]:
    """Return a tensor's encoding, and its bits per entry over the least possible."""
    size = math.prod(row.shape)
    if row.bytes_limit is None or not size:
        return row.encoding, "-"
    return row.encoding, f"{8 * row.bytes_stored / size:.2f}/{8 * row.bytes_limit / size:.2f}"


def _print_masks(masks: MaskSummary, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(masks), indent=2))
        return
    say(f"{masks.path}: masks alone, of {masks.metadata.spec or 'a model it does not name'}")
    share = "" if masks.sparsity is None else f", {percent(masks.sparsity)} of them removed"
    say(f"{byte_count(masks.bytes_file)}, {masks.kept:,} of {masks.masked_entries:,} masked weights kept{share}")
    print_table(layer_table(Layer(row.name, row.shape, row.kept) for row in masks.rows))


def _file_lines(summary: FileSummary) -> list[str]:
    from sparsify.training.records.result_text import of_average

    about = summary.metadata
    lines = [f"{summary.path}: {about.spec or 'a model it does not name'}, format {about.format}"]
    if about.metrics.get("test_accuracy") is not None:
        step = f" after step {about.metrics['step']:,}" if "step" in about.metrics else ""
        lines.append(f"test accuracy {percent(about.metrics['test_accuracy'])}{step}{of_average(about.metrics)}")
    share = percent(summary.bytes_file / summary.bytes_dense) if summary.bytes_dense else "-"
    lines.append(f"{byte_count(summary.bytes_file)}, {share} of the dense {byte_count(summary.bytes_dense)}")
    cut = sum(row.original is not None and not row.is_alias for row in summary.rows)
    if cut or summary.attributes:
        added = [row.name for row in summary.rows if row.added]
        lines.append(
            f"cut: {count(cut, 'tensor')} smaller, {summary.entries:,} of {summary.original_entries:,} numbers left"
            + (f"; added: {', '.join(added)}" if added else "")
        )
    if summary.sparsity is not None:
        lines.append(
            f"{summary.kept:,} of {summary.masked_entries:,} masked weights kept, {percent(summary.sparsity)} removed; "
            f"{summary.entries:,} numbers in all"
        )
    if summary.masked_entries and summary.bytes_limit:
        bits = 8 * summary.bytes_masked / summary.masked_entries
        times = summary.bytes_masked / summary.bytes_limit
        lines.append(f"{bits:.2f} bits for each of them, {times:.3f} times what masks and values must take")
    if about.engine:
        lines.append(f"tuned for an engine: inputs {about.engine.get('shapes')}, threads {about.engine.get('threads')}")
    return lines


def _print_model(spec: str, as_json: bool) -> None:
    import sparsify

    model = sparsify.build_model(spec)
    report = sparsify.convert(model)
    shapes = {name: list(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    if as_json:
        rows = {name: {"shape": shapes[name], "mask": how} for name, how in report.masked.items()}
        everything = {"model": spec, "masked": rows, "skipped": report.skipped, "notes": report.notes}
        click.echo(json.dumps(everything, indent=2))
        return
    say(spec, *conversion_lines(report))
    print_table(layer_table(Layer(name, shapes[name], None) for name in report.masked))
