"""The part of a page about one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from ...overlap import Masks, iou, iou_by_chance
from ...quantities import byte_count, count, percent
from ...training.folder import run_folder as folders
from ..bench_results import Timing
from ..figures import costs, curves, masks
from ..figures import layers as bars
from ..layer_records import Layer, Layers
from ..run_records import Run
from .parts import Block, Drawn, Part, Table, TableCell
from .sheet import milliseconds


def run_part(run: Run, layers: Layers, place: str, *, folded: bool = False) -> Part:
    """Return the part about one run; `place` is the prefix of its figures' ids."""
    blocks = [_about(run), _curves(run, place), _layers(layers, place), _masks(run, place), _file(run, place)]
    blocks += _latency(run, place)
    recipe = (run.folder / folders.RECIPE).read_text(encoding="utf-8")
    blocks.append(Block(code=recipe, code_title="The whole recipe"))
    return Part(place, f"{run.folder.name}", tuple(block for block in blocks if block is not None), folded)


def _about(run: Run) -> Block:
    recipe, metadata, last = run.recipe, run.file.metadata, run.records[-1]
    data = recipe.data.name + (f", {recipe.data.limit:,} images" if recipe.data.limit else "")
    shape = metadata.extra.get("input_shape")
    facts = [
        ("recipe", recipe.name),
        ("model", metadata.spec or recipe.model.name),
        ("data", f"{data}, input {'x'.join(map(str, shape))}" if shape else data),
        ("training", f"{count(last['step'], 'step')}, {count(int(last.get('epoch', 0)), 'epoch')}, seed {run.seed}"),
        ("pruning", _pruning(run)),
        ("time", f"{last.get('seconds', 0):,.0f} s"),
    ]
    if not run.conditions:
        facts.append(("hardware and versions", f"not noted by sparsify {metadata.writer or 'of then'}"))
    for conditions in run.conditions:
        start = "" if len(run.conditions) == 1 else f" from step {conditions.get('step')}"
        shown = {key: value for key, value in conditions.items() if key not in ("step", "device")}
        facts.append((f"hardware and versions{start}", ", ".join(f"{key} {value}" for key, value in shown.items())))
    return Block("What was run", facts=tuple(facts))


def _pruning(run: Run) -> str:
    prune = run.recipe.prune
    if prune is None:
        return "none: dense"
    reached = f", {percent(run.sparsity)} removed" if run.sparsity else ""
    words = [f"criterion {prune.criterion.name}", f"scope {prune.scope}", f"schedule {prune.schedule.name}"]
    cycles = f", {prune.schedule.cycles} cycles" if prune.schedule.cyclical and prune.schedule.cycles else ""
    return f"{', '.join(words)}{cycles}{reached}"


def _curves(run: Run, place: str) -> Block:
    ends = curves.cycle_ends(run)
    text = (
        (f"Broken lines: all weights come back after step {', '.join(f'{step:,}' for step in ends)}.",) if ends else ()
    )
    figures = (
        Drawn(f"{place}-accuracy", "Accuracy over steps, the sparsity behind it", curves.accuracy(run)),
        Drawn(f"{place}-loss", "Loss over steps", curves.loss(run)),
    )
    return Block("How it was trained", text, figures=figures)


def _layers(layers: Layers, place: str) -> Block:
    if not layers.layers:
        return Block("Layers", ("No weight carries a mask.",))
    few = len(layers.layers) > bars.MOST
    text = [*layers.notes]
    if few:
        text.append(f"Bars show the {bars.MOST} largest of {len(layers.layers)} layers; the table has all.")
    if layers.channels:
        text.append(
            f"{layers.dead:,} of {layers.channels:,} channels are dead: nothing that they hold reaches an output."
        )
    figures = [
        Drawn(f"{place}-sparsity", "Sparsity of each layer", bars.layer_sparsity(layers)),
        Drawn(f"{place}-parameters", "Parameters of each layer", bars.layer_parameters(layers)),
    ]
    costs_figure = bars.layer_multiply_adds(layers)
    if costs_figure is not None:
        figures.append(Drawn(f"{place}-multiply-adds", "Multiply-adds of each layer", costs_figure))
    headings = ("layer", "shape", "parameters", "kept", "sparsity", "multiply-adds", "of them kept", "dead channels")
    rows = tuple(_layer_row(layer) for layer in layers.layers)
    return Block("Layers", tuple(text), figures=tuple(figures), table=Table(headings, rows, sortable=True))


def _layer_row(layer: Layer) -> tuple[TableCell, ...]:
    dead = "-" if layer.channels is None else f"{layer.dead:,} of {layer.channels:,}"
    return (
        TableCell(layer.name, layer.name),
        TableCell("x".join(map(str, layer.shape)), layer.parameters),
        _number(layer.parameters),
        _number(layer.kept),
        TableCell(percent(layer.sparsity), layer.sparsity),
        _number(layer.multiply_adds),
        _number(layer.kept_multiply_adds),
        TableCell(dead, "" if layer.dead is None else layer.dead),
    )


def _number(value: int | None) -> TableCell:
    return TableCell("-") if value is None else TableCell(f"{value:,}", value)


def _masks(run: Run, place: str) -> Block | None:
    if len(run.masks) < 2:
        return None
    found: Mapping[int, Masks] = masks.cycle_masks(run)
    first, second = list(found)[:2]
    chance, seen = iou_by_chance(found[first], found[second]), iou(found[first], found[second])
    text = (
        "Intersection over union: of the weights that either cycle keeps, the share that both keep. "
        f"Cycles {first} and {second} share {percent(seen)}; random masks of these sizes would {percent(chance)}.",
    )
    figures = (
        Drawn(f"{place}-cycles", "Masks of every two cycles", masks.cycle_overlap(found)),
        Drawn(
            f"{place}-cycles-layers",
            "Masks of cycles that follow each other, layer by layer",
            masks.layer_overlap(found),
        ),
    )
    return Block("Which weights each cycle kept", text, figures=figures)


def _file(run: Run, place: str) -> Block:
    file, least = run.file, costs.limit_of(run.file)
    name = Path(file.path).name
    text = (
        f"{name}: {byte_count(file.bytes_file)}, {file.bytes_file / max(1, least):.3f} times the {byte_count(least)} "
        "that these masks and values take at least, where no pattern of the masks is used.",
    )
    return Block("File", text, figures=(Drawn(f"{place}-sizes", "Bytes", costs.sizes(file)),))


def _latency(run: Run, place: str) -> list[Block]:
    if not run.bench:
        return [Block("Time of a pass", (f"Not timed yet: sparsify bench {quote(str(run.folder))}",))]
    blocks: list[Block] = []
    for number, result in enumerate(run.bench, start=1):
        shape, threads = "x".join(map(str, result.shape)), count(result.threads, "thread")
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        text = (f"Input {shape}, {threads}, {result.processor}; {versions}; {result.date}.",)
        title = f"Milliseconds of a pass: median and quartiles, input {shape}"
        table = Table(("runtime", "median", "quartiles"), tuple(_timing_row(one) for one in result.timings))
        figure = Drawn(f"{place}-latency-{number}", title, costs.latency(result))
        blocks.append(Block("Time of a pass" if number == 1 else "", text, figures=(figure,), table=table))
    return blocks


def _timing_row(one: Timing) -> tuple[TableCell, ...]:
    spread = f"{milliseconds(one.low)} - {milliseconds(one.high)}"
    return (TableCell(one.name), TableCell(milliseconds(one.median)), TableCell(spread))
