"""A finished run's folder as frozen records. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SparsifyError
from ..formats.file.inspection import FileSummary, inspect_file
from ..formats.io.locate import model_file
from ..training.folder import run_folder as folders
from ..training.recipe.read import Recipe
from .bench_results import BenchResult, read_bench_results

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run.

    `records` are those of metrics.jsonl in order, `conditions` the hardware and versions of each start (empty for runs
    of versions that did not store them), `file` the saved model's tensors, `masks` the mask files at the ends of the
    cycles by the cycle's number, `bench` the results of `sparsify bench`.
    """

    folder: Path
    recipe: Recipe
    records: tuple[Row, ...]
    conditions: tuple[Mapping[str, str], ...]
    file: FileSummary
    masks: Mapping[int, Path]
    bench: tuple[BenchResult, ...]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.train.seed

    @property
    def accuracy(self) -> float | None:
        """The final test accuracy, at the final sparsity; None without test data."""
        value = self.records[-1].get("test_accuracy")
        return None if value is None else float(value)

    @property
    def sparsity(self) -> float:
        """The removed fraction of the masked weights, 0 for a dense model; of all parameters if the model was cut."""
        file = self.file
        if file.entries < file.original_entries:
            return 1 - (file.entries - (file.masked_entries - file.kept)) / file.original_entries
        return file.sparsity or 0.0

    @property
    def shrunk(self) -> Row:
        """The record of a shrink during training ("multiply_adds" before and after, and more), {} if there was none."""
        return next((record["shrunk"] for record in self.records if record.get("shrunk")), {})


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Return the finished run in `folder`.

    Raises SparsifyError, one line, if there is no run or if it is unfinished, damaged or without metrics.
    """
    path = Path(folder)
    folders.check_run(path)
    recipe = folders.stored_recipe(path)
    saved = model_file(path)
    return Run(
        folder=path,
        recipe=recipe,
        records=_records(path),
        conditions=tuple(_json(path / folders.CONDITIONS, list) or ()),
        file=inspect_file(saved),
        masks=_masks(path),
        bench=read_bench_results(path),
    )


def _records(folder: Path) -> tuple[Row, ...]:
    path, found = folder / folders.METRICS, []
    if not path.is_file():
        raise SparsifyError(f"{folder}: a run without metrics: there is no {folders.METRICS} in it")
    with folders.one_line(folder):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            found.append({**record, "step": int(record["step"]), "sparsity": float(record["sparsity"])})
        except (ValueError, KeyError, TypeError):
            raise SparsifyError(f"{path}:{number}: damaged: not a record of a run") from None
    if not found:
        raise SparsifyError(f"{folder}: a run without metrics: {folders.METRICS} is empty")
    return tuple(found)


def _masks(folder: Path) -> dict[int, Path]:
    pattern = folders.MASKS.format("*")
    found = {path.stem.removeprefix("cycle-"): path for path in folder.glob(pattern)}
    return {int(number): found[number] for number in sorted((n for n in found if n.isdigit()), key=int)}


def _json(path: Path, kind: type) -> Any:
    """Return the content of a JSON file, None if it does not exist."""
    if not path.exists():
        return None
    with folders.one_line(path.parent):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise SparsifyError(f"{path}: damaged: not what sparsify writes there")
    return value
