"""Milliseconds of sparse networks on the engine, PyTorch, ONNX Runtime and DeepSparse, in turns.

    python -m benchmarks.runtime [--part table|scaling|peak] [--deepsparse PYTHON] [--rounds 11] [--threads 2]
    python -m benchmarks.runtime --only cifar:resnet32 --batches 1 --rounds 1     # to try it: writes nothing

`table` writes runtime.csv and a section of results.md; `peak` one that sets the table's arithmetic rates beside the
machine's; `scaling` times one network at many sparsities and batches, for a section and scaling.svg. All three
run, in that order, unless --part names one. PYTHON is the interpreter of an environment with deepsparse 1.8, which
needs its own (`pip install deepsparse==1.8.0` in Python 3.8 to 3.11). The scaling needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from ..record import environment, record
from ..timing import quartiles
from .contenders import Cell, contenders, take_turns
from .summary import rates, scaling, table

ROWS = Path(__file__).parent / "runtime.csv"
CHART = Path(__file__).parent / "scaling.svg"
NETWORKS = {"cifar:resnet32": (64, 1), "cifar:vgg19_bn": (64, 1), "timm:resnet50": (16, 1)}
SPARSITIES = (0.0, 0.9, 0.95, 0.98)
SCALED = "cifar:resnet32"
SCALING_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
SCALING_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SCALING_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["table", "peak", "scaling"])
    parser.add_argument("--only", help="one of the networks; prints its rows and writes nothing")
    parser.add_argument("--batches", type=int, nargs="+", help="with --only: these in place of its own")
    parser.add_argument("--sparsities", type=float, nargs="+", help="with --only: these in place of all")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter of an environment with deepsparse")
    given = parser.parse_args()
    if given.only:
        batches = given.batches or NETWORKS[given.only]
        cells = [
            Cell(given.only, batch, sparsity, given.threads)
            for batch, sparsity in itertools.product(batches, given.sparsities or SPARSITIES)
        ]
        print(table(measure(cells, given.rounds, given.deepsparse)))
        return
    if given.part in (None, "table"):
        _table(given.rounds, given.threads, given.deepsparse)
    if given.part in (None, "peak"):
        with ROWS.open(newline="") as file:
            record("runtime --part peak", f"{_about(given.threads)}\n\n{rates(list(csv.DictReader(file)))}")
    if given.part in (None, "scaling"):
        _scaling(min(given.rounds, SCALING_ROUNDS))


def _table(rounds: int, threads: int, deepsparse: str | None) -> None:
    cells = [
        Cell(network, batch, sparsity, threads)
        for network, batches in NETWORKS.items()
        for batch, sparsity in itertools.product(batches, SPARSITIES)
    ]
    rows = measure(cells, rounds, deepsparse)
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    others = "" if deepsparse is None else f" DeepSparse {_version(deepsparse)}, Python of its own."
    record("runtime --part table", f"{_about(threads)}{others}\n\n{table(rows)}")


def _scaling(rounds: int) -> None:
    by_sparsity = [
        Cell(SCALED, batch, sparsity, threads)
        for batch, sparsity, threads in itertools.product((1, 64), SCALING_SPARSITIES, (1, 2))
    ]
    by_batch = [Cell(SCALED, batch, 0.9, threads) for batch, threads in itertools.product(SCALING_BATCHES, (1, 2))]
    rows = measure(dict.fromkeys([*by_sparsity, *by_batch]), rounds, None)
    record("runtime --part scaling", f"{_about(None)}\n\n{scaling(rows, CHART)}")


def measure(cells: Iterable[Cell], rounds: int, deepsparse: str | None) -> list[dict[str, Any]]:
    """Return a row for each cell: its settings, and each contender's seconds, median and quartiles."""
    rows = []
    for cell in cells:
        with contenders(cell, deepsparse) as (turns, about):
            seconds = take_turns(turns, rounds)
        row: dict[str, Any] = {**vars(cell), **about, "rounds": rounds}
        for name, values in seconds.items():
            low, high = quartiles(values)
            row |= {name: median(values), f"{name}, quartiles": json.dumps([low, high])}
        rows.append(row)
        told = ", ".join(f"{name} {1e3 * median(values):.2f} ms" for name, values in seconds.items())
        print(f"{cell.network} x {cell.batch}, {cell.sparsity:.0%}, threads {cell.threads}: {told}", flush=True)
    return rows


def _about(threads: int | None) -> str:
    return environment("torch", "onnxruntime", "numba", "timm", threads=threads)


def _version(python: str) -> str:
    code = "import importlib.metadata as m; print(m.version('deepsparse'))"
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
