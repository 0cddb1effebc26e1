"""Records go to the trackers that a recipe names, without a network."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.recipe import lookups
from sparsify.training.recipe.read import read_recipe
from sparsify.training.run.train import train

ROOT = Path(__file__).parents[3]


def recipe(*trackers: str) -> dict[str, Any]:
    settings = {"max_steps": 4, "log_every": 2, "device": "cpu", "trackers": list(trackers)}
    prune = {"sparsity": 0.5, "scope": "filter"}
    return {"model": "cifar:resnet20", "data": {"name": "digits", "batch_size": 100}, "train": settings, "prune": prune}


def run(folder: Path, *trackers: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    train(recipe(*trackers), out=folder, model=model, check=False)


def run_apart(folder: Path, tracker: str, **environment: Any) -> list[dict[str, Any]]:
    """Run in a process of its own, as trackers leave threads and environment variables behind; return the records."""
    code = f"from {__name__} import run, Path; run(Path({str(folder / 'one')!r}), {tracker!r}, 'tensorboard')"
    variables = {name: str(value) for name, value in environment.items()}
    given = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=given, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in (folder / "one" / "metrics.jsonl").read_text().splitlines()]


def rows(base: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(base)) as opened:
        return opened.execute(query).fetchall()


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


@needs("mlflow")
@pytest.mark.slow
def test_mlflow_gets_the_records_and_the_recipe(tmp_path: Path) -> None:
    base = tmp_path / "mlflow.db"
    records = run_apart(tmp_path, "mlflow", MLFLOW_TRACKING_URI=f"sqlite:///{base}")
    assert rows(base, "select name, status from runs") == [("one", "FINISHED")]
    assert rows(base, "select value from params where key = 'prune.sparsity'") == [("0.5",)]
    found = rows(base, "select step, value from metrics where key = 'loss' order by step")
    assert found == [(record["step"], pytest.approx(record["loss"])) for record in records]
    assert {value for (value,) in rows(base, "select value from metrics where key = 'sparsity'")} == {0.5}


@needs("trackio")
@pytest.mark.slow
def test_trackio_gets_the_records(tmp_path: Path) -> None:
    records = run_apart(tmp_path, "trackio", TRACKIO_DIR=tmp_path / "trackio")
    [base] = [file for file in (tmp_path / "trackio").rglob("*.db") if "sparsify" in file.name]
    assert [step for (step,) in rows(base, "select step from metrics order by step")] == [r["step"] for r in records]


@needs("wandb")
@pytest.mark.slow
def test_wandb_gets_the_records_offline(tmp_path: Path) -> None:
    run_apart(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=tmp_path, WANDB_SILENT="true")
    [file] = tmp_path.rglob("run-*.wandb")
    assert b"sparsity" in file.read_bytes() and b"test_accuracy" in file.read_bytes()


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    path = tmp_path / "recipe.yaml"
    path.write_text("model: cifar:resnet20\ntrain:\n  trackers: [tensorboard, wandb]\n")
    with pytest.raises(
        SparsifyError, match=r"recipe.yaml:3: train.trackers: wandb is not installed: pip install wandb"
    ):
        read_recipe(path)
    with pytest.raises(SparsifyError, match="wandb is not installed"):
        train(recipe("wandb"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match=r"train.trackers.*'wandbb'.*wandb"):
        train(recipe("wandbb"), out=tmp_path / "run")


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsify.training.records import trackers

    class Away(trackers.MLflowTracker):  # type: ignore[misc, name-defined]
        def start(self) -> None:
            raise ConnectionError("the server is\naway")

    monkeypatch.setattr(trackers, "MLflowTracker", Away)
    monkeypatch.setattr(lookups, "find_spec", lambda name: find_spec("timm" if name == "timm" else "torch"))
    with pytest.raises(SparsifyError, match="train.trackers: mlflow does not start: the server is away"):
        run(tmp_path / "run", "mlflow")
