"""A finished run to report on, and others made of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsify.training.run.train import train

RECIPE: dict[str, Any] = {
    "name": "small",
    "model": {"name": "cifar:resnet20", "arguments": {"widths": [4, 4, 8]}},
    "data": {"name": "digits", "batch_size": 500},
    "train": {"epochs": 5, "seed": 1, "device": "cpu", "optimizer": {"name": "sgd", "lr": 0.05}, "log_every": 1},
    "prune": {
        "sparsity": 0.8,
        "scope": "filter",
        "ignore": ["last"],
        "schedule": {"name": "cyclic", "cycles": 3},
        "end": 0.9,
        "every": "1it",
        "after_cycles": "union",
    },
}
Derive = Callable[..., Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of three cycles; it is not to be written to."""
    return train(RECIPE, out=tmp_path_factory.mktemp("report") / "run", check=False).folder


@pytest.fixture
def derive(finished: Path, tmp_path: Path) -> Derive:
    """Make a run that never was: with another seed, lines of its recipe, or last test accuracy."""

    def make(name: str, *, seed: int = 1, accuracy: float | None = 0.5, change: tuple[str, str] | None = None) -> Path:
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        recipe = (folder / "recipe.yaml").read_text().replace("  seed: 1\n", f"  seed: {seed}\n")
        if change is not None:
            assert change[0] in recipe
            recipe = recipe.replace(*change)
        (folder / "recipe.yaml").write_text(recipe)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        records[-1]["test_accuracy"] = accuracy
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return make
