"""A whole sweep: stopped, gone on with, never run twice."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsify.errors import SparsifyError
from sparsify.report import read_run
from sparsify.sweep import run
from sparsify.sweep.run import is_finished, run_all
from sparsify.sweep.vary import parse_varied, sweep_runs

from .test_queue import until

RECIPE = """
name: tiny
model: {name: 'cifar:resnet20', arguments: {widths: [4, 4, 8]}}
data: {name: digits, batch_size: 500}
train: {epochs: 4, device: cpu, optimizer: {name: sgd, lr: 0.05}, checkpoint: {every: 1it}}
prune: {sparsity: 0.5, scope: layer, schedule: {name: linear}, end: 0.5}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("a finished run was started")


@pytest.mark.slow
@pytest.mark.sample
def test_a_stopped_sweep_goes_on_and_compares(
    recipe: Path, tmp_path: Path, sparsify: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    args = ["sweep", str(recipe), "--vary", "prune.sparsity=[0.5, 0.8]", "--seeds", "2", "--out", str(out)]
    args += ["--threads", "1"]
    started = subprocess.Popen(
        [sys.executable, "-m", "sparsify.cli", *args, "--jobs", "2"],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background are deaf to it
    )
    first = out / "sparsity=0.5-seed=1"
    until(lambda: (first / "metrics.jsonl").exists() and (first / "metrics.jsonl").stat().st_size, 200)
    started.send_signal(signal.SIGINT)
    assert started.wait(100) == 130
    assert (first / "checkpoints" / "last.safetensors").exists()
    before = (first / "metrics.jsonl").read_bytes()

    code, text, err = sparsify(*args)
    assert (code, err) == (0, ""), err
    assert (first / "metrics.jsonl").read_bytes().startswith(before)
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["seed"]) for row in rows] == [
        (f"sparsity={sparsity}", seed) for sparsity in ("0.5", "0.8") for seed in ("1", "2")
    ]
    assert "over paired seeds" in text
    runs = sweep_runs(recipe, [parse_varied("prune.sparsity=[0.5, 0.8]")], (1, 2), out)
    assert all(map(is_finished, runs))
    assert float(rows[0]["test_accuracy"]) == pytest.approx(read_run(first).accuracy, rel=1e-5)

    # A sweep gives what `sparsify train` gives with as many threads.
    alone = [sys.executable, "-m", "sparsify.cli", "train", str(recipe), "--set", "prune.sparsity=0.8", "--seed", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([*alone, "--out", str(tmp_path / "alone")], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert read_run(tmp_path / "alone").accuracy == read_run(runs[3].folder).accuracy

    # What is finished never runs again.
    monkeypatch.setattr(run, "work", forbidden)
    assert run_all(runs, out, say=lambda _: None) == []


def test_a_run_of_another_recipe_is_named(recipe: Path, tmp_path: Path) -> None:
    [one] = sweep_runs(recipe, [], (1,), tmp_path / "out")
    assert not is_finished(one)
    one.folder.mkdir(parents=True)
    (one.folder / "recipe.yaml").write_text(one.recipe.to_yaml().replace("epochs: 4", "epochs: 5"))
    with pytest.raises(SparsifyError, match="train.epochs is 5 there and 4 here"):
        is_finished(one)
