"""The tables and the chart of the runtime benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .contenders import LAYOUTS

Row = Mapping[str, Any]
OTHERS = {"onnxruntime": "ONNX Runtime", "deepsparse": "DeepSparse"}
_INTRODUCTION = """\
One pass over images of noise (32 pixels, timm's 224), in milliseconds: median and quartiles of the rounds; in each
every one has a turn. Random weights, each layer but the first and the last pruned by magnitude; batch norms moved off
0 and 1. *torch* is the better of its two memory formats. ONNX Runtime and DeepSparse run one file of opset 13. All
outputs are PyTorch's within 1e-4 of the largest. The last columns say how many times as fast as each the engine is."""
_SIZE, _PASSES = 2048, 12


def best_layout(row: Row) -> str:
    """Return which of torch's memory formats was faster."""
    return min(LAYOUTS, key=lambda name: float(row[name]))


def table(rows: Sequence[Row]) -> str:
    """Return the introduction and the table of all cells."""
    others = [name for name in OTHERS if any(row.get(name) for row in rows)]
    titles = ["network", "batch", "sparsity", "engine", "torch", *(OTHERS[name] for name in others)]
    titles += ["torch / engine", *(f"{OTHERS[name]} / engine" for name in others), "the engine's way"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        names = ["engine", best_layout(row), *others]
        cells = [row["network"], row["batch"], f"{float(row['sparsity']):.0%}", *(_cell(row, name) for name in names)]
        cells += [f"{float(row[name]) / float(row['engine']):.2f}" for name in names[1:]]
        lines.append(f"| {' | '.join(map(str, [*cells, row['way']]))} |")
    missing = "" if "deepsparse" in others else "\n\nDeepSparse was not timed: no environment with it was named."
    return f"{_INTRODUCTION}{missing}\n\n" + "\n".join(lines)


def _cell(row: Row, name: str) -> str:
    low, high = (1e3 * value for value in json.loads(row[f"{name}, quartiles"]))
    return f"{1e3 * float(row[name]):.4g} ({low:.4g} to {high:.4g})"


def rates(rows: Sequence[Row]) -> str:
    """Return the section on arithmetic: the table's cells again, beside the rate of a matrix product measured now."""
    threads = int(rows[0]["threads"])
    product, convolution = matrix_product(threads), dense_convolution(threads)
    peak = max(product, convolution)
    lines = [
        f"The peak is the faster of two dense operations of torch in float32, {_PASSES} passes of each on",
        f"{_threads(threads)}: the product of two matrices of {_SIZE} x {_SIZE}, {product / 1e9:.0f} GFLOP/s, and",
        f"a 3 x 3 convolution of 16 images of 128x28x28, channels last, {convolution / 1e9:.0f}. *Kept* counts",
        "multiplications and additions with weights that are not 0, *all* those of the dense network, in the engine's",
        "median time and in torch's.",
        "",
        "| network | batch | sparsity | engine, kept, GFLOP/s | of the peak | engine, all | of the peak | torch, all "
        "| of the peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        done, whole = (2 * int(row[name]) for name in ("multiply_adds", "all_multiply_adds"))
        cells = [row["network"], row["batch"], f"{float(row['sparsity']):.0%}"]
        for work, seconds in ((done, row["engine"]), (whole, row["engine"]), (whole, row[best_layout(row)])):
            rate = work / float(seconds)
            cells += [f"{rate / 1e9:.0f}", f"{rate / peak:.0%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def matrix_product(threads: int, size: int = _SIZE) -> float:
    """Return the floating-point operations per second of torch's product of two square matrices."""
    one, two = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _least(lambda: one @ two, threads)


def dense_convolution(threads: int, channels: int = 128, size: int = 28) -> float:
    """Return the floating-point operations per second of torch's 3 x 3 convolution of 16 images, channels last."""
    x = torch.randn(16, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    return 2 * 9 * x.numel() * channels / _least(lambda: torch.conv2d(x, weight, padding=1), threads)


def _least(work: Callable[[], object], threads: int) -> float:
    """Return the shortest time of `work` in seconds."""
    torch.set_num_threads(threads)
    least = float("inf")
    for _ in range(_PASSES):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


def scaling(rows: Sequence[Row], chart: Path) -> str:
    """Draw the chart and return the section: the same figures as tables."""
    lines = [
        f"{rows[0]['network']} as in the table above, {rows[0]['rounds']} rounds.",
        "",
        f"![times torch by sparsity, images per second by batch](runtime/{chart.name})",
        "",
        "| batch | threads | sparsity | engine, ms | torch / engine | ONNX Runtime / engine | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["batch"], row["threads"], row["sparsity"])):
        ratios = [f"{row[name] / row['engine']:.2f}" for name in (best_layout(row), "onnxruntime")]
        cells = [row["batch"], row["threads"], f"{row['sparsity']:.0%}", f"{1e3 * row['engine']:.4g}", *ratios]
        cells.append(f"{row['batch'] / row['engine']:,.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    _draw(rows, chart)
    return "\n".join(lines)


def _draw(rows: Sequence[Row], chart: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sparsities = {row["sparsity"] for row in rows}
    for batch in sorted({row["batch"] for row in rows}):
        for threads, style in ((1, "--"), (2, "-")):
            chosen = _of(rows, "sparsity", batch=batch, threads=threads)
            if len(chosen) > len(sparsities) // 2:
                times = [row[best_layout(row)] / row["engine"] for row in chosen]
                label = f"batch {batch}, {_threads(threads)}"
                left.plot([100 * row["sparsity"] for row in chosen], times, style, marker="o", ms=4, label=label)
    for threads, style in ((1, "--"), (2, "-")):
        chosen = _of(rows, "batch", sparsity=0.9, threads=threads)
        for name, colour in (("engine", "tab:blue"), ("torch", "tab:orange"), ("onnxruntime", "tab:green")):
            rate = [row["batch"] / row[best_layout(row) if name == "torch" else name] for row in chosen]
            label = f"{OTHERS.get(name, name)}, {_threads(threads)}"
            right.plot([row["batch"] for row in chosen], rate, style, color=colour, marker="o", ms=4, label=label)
    left.axhline(1, color="tab:gray", lw=0.8)
    left.set(xlabel="sparsity, %", ylabel="torch's time / the engine's", ylim=(0, None))
    right.set(xlabel="batch", ylabel="images per second, 90 % sparse", ylim=(0, None))
    right.set_xscale("log", base=2)
    batches = sorted({row["batch"] for row in rows})
    right.set_xticks(batches, [str(batch) for batch in batches])
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(chart, metadata={"Date": None})


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _of(rows: Iterable[Row], by: str, **wanted: Any) -> list[Row]:
    return sorted((row for row in rows if all(row[k] == v for k, v in wanted.items())), key=lambda row: float(row[by]))
