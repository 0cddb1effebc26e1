"""Draw the pictures of README and docs/concepts.md from stored measurements and the real functions.

    python -m tools.pictures

Colours are readable on white and on black; backgrounds are transparent. Needs matplotlib (the extra `plot`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import sparsify
from sparsify.pruning.schedules import update_plan
from sparsify.pruning.settings.prune import parse_pruning

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
INK = "#7d838c"
COLOURS = ("#2f81f7", "#d4772c", "#2da04e", "#a371f7", "#cf4a57")
STYLE = {
    "svg.hashsalt": "sparsify",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
KEPT, REMOVED = "#2f81f7", "#7d838c40"


def main(folder: Path = FOLDER) -> None:
    """Draw every picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            draw().savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


def speed() -> Figure:
    """Return how many times as fast as PyTorch ResNet-50 runs, by sparsity: stored rows of the runtime benchmark."""
    with (ROOT / "benchmarks" / "runtime" / "runtime.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "timm:resnet50"]
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    peers = {"sparsify": "engine", "DeepSparse 1.8 (ended)": "deepsparse", "ONNX Runtime": "onnxruntime"}
    for axes, batch in zip(figure.subplots(1, 2, sharey=True), ("1", "16"), strict=True):
        chosen = [row for row in rows if row["batch"] == batch]
        percent = [100 * float(row["sparsity"]) for row in chosen]
        torch_time = [min(float(row["torch, contiguous"]), float(row["torch, channels last"])) for row in chosen]
        for (label, column), colour in zip(peers.items(), COLOURS, strict=False):
            times = [dense / float(row[column]) for dense, row in zip(torch_time, chosen, strict=True)]
            axes.plot(
                range(len(times)), times, marker="o", color=colour, label=label, lw=2.4 if column == "engine" else 1.4
            )
            if column == "engine":
                for place, value in enumerate(times):
                    axes.annotate(f"{value:.1f}", (place, value), (0, -15), textcoords="offset points", ha="center")
        axes.axhline(1, color=INK, lw=0.8, ls=":")
        axes.set(title=f"ResNet-50, batch {batch}", xlabel="weights removed")
        axes.set_xticks(range(len(percent)), [f"{value:.0f} %" for value in percent])
        axes.margins(y=0.12)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].set_ylabel("times as fast as PyTorch")
    figure.axes[0].legend(loc="upper left")
    return figure


def schedules() -> Figure:
    """Return the sparsity over training of the schedules, each its own plan of updates."""
    shapes: dict[str, dict[str, Any]] = {
        "one_shot": {"schedule": "one_shot", "begin": 0.4},
        "linear": {"schedule": "linear"},
        "cubic": {"schedule": "cubic"},
        "cyclic": {"schedule": {"name": "cyclic", "cycles": 4}},
        "cyclic, union": {"schedule": {"name": "cyclic", "cycles": 4}, "after_cycles": "union"},
    }
    figure = Figure(figsize=(8.4, 2.3), layout="constrained")
    for axes, (title, keys), colour in zip(figure.subplots(1, 5, sharey=True), shapes.items(), COLOURS, strict=True):
        steps, values = _sparsity(keys)
        axes.step(steps, values, where="post", color=colour)
        axes.axvline(80, color=INK, lw=0.8, ls=":")
        axes.set(title=title, xlim=(0, 100), ylim=(0, 1), xlabel="% of training")
        axes.set_xticks([0, 40, 80])
    figure.axes[0].set_ylabel("sparsity")
    return figure


def _sparsity(keys: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return percents of training and the sparsity from each of them on; of a union's cycle an example."""
    pruning = parse_pruning({"sparsity": 0.9, "every": 0.01, **keys})
    steps, values = [0.0], [0.0]
    for update in update_plan(pruning, 200):
        due = 0.0 if update.event == "reset" else update.sparsity
        if due is None:  # from what the union left, here two thirds, in a line to the target
            due = 0.66 + (0.9 - 0.66) * float(update.progress)
        steps.append(update.step / 2)
        values.append(float(due))
    return [*steps, 100.0], [*values, values[-1]]


def granularities() -> Figure:
    """Return one weight of 16 outputs and 16 inputs at half its entries, by each granularity."""
    names = {"weight": "weight", "unit (a row)": "unit", "block 4x1": "4x1", "2:4": "2:4"}
    return _grids([(name, _mask({"granularity": key})) for name, key in names.items()], "outputs", "inputs")


def scopes() -> Figure:
    """Return two layers, one of larger weights, at half of all entries, by each scope."""
    figures = [(scope, _mask({"scope": scope}, layers=2)) for scope in ("global", "layer", "filter", "erk")]
    return _grids(figures, "outputs of two layers", "inputs")


def _mask(keys: dict[str, Any], layers: int = 1) -> torch.Tensor:
    """Return the mask that pruning to one half makes of layers of 16 outputs or less, the layers under each other."""
    torch.manual_seed(3)
    shapes = [(16, 16)] if layers == 1 else [(12, 16), (5, 16)]
    linear = [torch.nn.Linear(columns, rows, bias=False) for rows, columns in shapes]
    for index, layer in enumerate(linear):
        layer.weight.data.normal_(std=2.0 if index else 1.0)
    model = torch.nn.Sequential(*linear)
    sparsify.convert(model)
    sparsify.Pruner(model, {"sparsity": 0.5, "schedule": "one_shot", **keys}, total_steps=1).start()
    masks = list(sparsify.get_masks(model).values())
    gap = torch.full((1, 16), float("nan"))
    rows = [part for mask in masks for part in (mask.float(), gap)]
    return torch.cat(rows[:-1])


def _grids(masks: list[tuple[str, torch.Tensor]], down: str, across: str) -> Figure:
    figure = Figure(figsize=(8.4, 2.5), layout="constrained")
    for axes, (title, mask) in zip(figure.subplots(1, len(masks)), masks, strict=True):
        axes.imshow(mask.numpy(), cmap=ListedColormap([REMOVED, KEPT]), interpolation="none")
        axes.set(title=title, xticks=[], yticks=[], xlabel=across)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel(down)
    return figure


def union() -> Figure:
    """Return the masks at the ends of three cycles, their union, and what the last cycle leaves of it."""
    generator = torch.Generator().manual_seed(5)
    base = torch.rand(12, 12, generator=generator)
    cycles = [base + 0.5 * torch.rand(12, 12, generator=generator) for _ in range(3)]
    masks = [scores >= scores.flatten().kthvalue(108).values for scores in cycles]
    joined = masks[0] | masks[1] | masks[2]
    scores = torch.where(joined, sum(cycles), -1.0)
    final = scores >= scores.flatten().kthvalue(108).values
    names = ("cycle 1", "cycle 2", "cycle 3", "union", "at the end")
    return _grids([(n, m.float()) for n, m in zip(names, (*masks, joined, final), strict=True)], "outputs", "inputs")


PICTURES: dict[str, Callable[[], Figure]] = {
    "speed": speed,
    "schedules": schedules,
    "granularities": granularities,
    "scopes": scopes,
    "union": union,
}


if __name__ == "__main__":
    main()
