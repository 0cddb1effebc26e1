"""runs.csv: a row for each finished run. curves.csv: a row for each of its epochs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsify.formats.io.atomic import atomic_write
from sparsify.training.folder import run_folder as folders

from .study import HERE, Run

RUNS = HERE / "runs.csv"
_RUN = ("study", "model", "method", "sparsity", "budget", "recipe", "seed")
_MEASURES = (
    "final_accuracy",
    "best_accuracy",
    "best_epoch",
    "best_sparsity",
    "train_loss",
    "test_loss",
    "removed",
    "seconds",
    "processor_seconds",
)
COLUMNS = (*_RUN, *_MEASURES, "versions", "device")
CURVE_COLUMNS = (*_RUN, "epoch", "step", "lr", "due_sparsity", "cycle", "loss", "test_loss", "test_accuracy")

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """Return a row's key, as `Run.key`."""
    return (row["study"], row["model"], row["method"], row["recipe"], row["seed"])


def add_rows(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file, which is replaced whole, so that it never holds half a row."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read_rows(path), *rows])
    atomic_write(path, text.getvalue().encode())


def take_rows(path: Path, columns: tuple[str, ...], other: Path) -> None:
    """Add the rows of another file for runs without one in `path`."""
    known = {key_of(row) for row in read_rows(path)}
    new = [row for row in read_rows(other) if key_of(row) not in known]
    if new:
        add_rows(path, columns, new)


def beside(runs: Path, name: str) -> Path:
    """Return the file of that name beside a file of runs: curves.csv for runs.csv."""
    return runs.with_name(runs.name.replace("runs", name))


def write_finished(runs: Path, run: Run, folder: Path, measures: Mapping[str, Any]) -> None:
    """Add a finished run's epochs, then the run, which marks it finished; rows of a killed queue are replaced."""
    about = _about(run)
    path = beside(runs, "curves")
    if run.key not in {key_of(row) for row in read_rows(path)}:
        records = [json.loads(line) for line in (folder / folders.METRICS).read_text().splitlines()]
        tested = [record for record in records if "test_accuracy" in record]
        curve = [{key: _short(record.get(key)) for key in CURVE_COLUMNS} for record in tested]
        for row, record in zip(curve, tested, strict=True):
            row |= {"due_sparsity": _short(record["sparsity"]), **about}
        add_rows(path, CURVE_COLUMNS, curve)
    versions = " ".join(f"{package} {version(package)}" for package in ("sparsify-torch", "torch", "timm"))
    row = about | {key: _short(value) for key, value in measures.items()} | {"versions": versions}
    add_rows(runs, COLUMNS, [row])


def _about(run: Run) -> dict[str, Any]:
    sparsity = "" if run.sparsity is None else run.sparsity
    values = (run.study, run.model, run.method, sparsity, f"{run.budget:g}", run.hash, run.seed)
    return dict(zip(_RUN, values, strict=True))


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
