"""Runs that are killed or signalled at a known place, in processes of their own, end with one left alone's bits."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.processes import nth_call, run, signal_at, start

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

PAUSE = "sparsify.training.run.keeper:Keeper.pause"
WRITE = "sparsify.training.folder.checkpoint_files:write_state"
# 4 epochs of 3 steps; records after steps 3, 6, 9, 10 and 12.
TRAIN = ["train", "recipes/union_mask.yaml", "--model", "timm:test_resnet", "--device", "cpu", "--no-verify"]
TRAIN += ["--set", "data.batch_size=500", "--set", "train.epochs=4", "--set", "prune.every=1it"]
OFTEN = ["--set", "train.checkpoint.every=1it"]


def records(folder: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    names = {path.relative_to(one) for path in one.rglob("*.safetensors") if not path.name.startswith("step-")}
    assert Path("model.safetensors") in names and Path("masks/cycle-2.safetensors") in names
    for name in names - {Path("checkpoints/last.safetensors")}:
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert records(one) == records(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(*TRAIN, "--out", folder / "run", err=folder / "err") == (0, "")
    return folder / "run"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_ends_the_step_and_the_run_goes_on_to_the_same_bits(tmp_path: Path, whole: Path, name: str) -> None:
    number, folder = getattr(signal, name), tmp_path / "run"
    hook = (signal_at, PAUSE, 5, number)
    code, err = run(*TRAIN, "--out", folder, err=tmp_path / "err", hook=hook)
    assert (code, err) == (128 + number, f"sparsify: stopped; go on with: sparsify train --resume {folder}\n")
    assert [record["step"] for record in records(folder)] == [3]
    assert run("train", "--resume", folder, err=tmp_path / "err") == (0, "")
    assert_same(whole, folder)


def test_a_signal_breaks_off_an_evaluation_which_is_done_anew(tmp_path: Path, whole: Path) -> None:
    # Pauses: after steps 1, 2 and 3, then before the only batch of the evaluation.
    hook = (signal_at, PAUSE, 4, signal.SIGTERM)
    assert run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook)[0] == 143
    assert records(tmp_path / "run") == []
    assert run("train", "--resume", tmp_path / "run", err=tmp_path / "err") == (0, "")
    assert_same(whole, tmp_path / "run")


def test_a_signal_before_the_run_began_leaves_nothing(tmp_path: Path) -> None:
    hook = (signal_at, "sparsify.training.run.opening:prepare", 1, signal.SIGTERM)
    assert run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook) == (143, "sparsify: stopped\n")
    assert not (tmp_path / "run").exists()


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    hook = (signal_at, PAUSE, 2, signal.SIGINT, signal.SIGTERM)
    code, err = run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook)
    assert (code, err) == (143, "sparsify: ended at once; the run goes on from its last checkpoint\n")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("sparsify.formats.io.atomic:_write_all", 30),  # within the first checkpoint
        ("sparsify.formats.io.atomic:os.fsync", 7),  # written whole, and not yet renamed
        ("sparsify.training.folder.checkpoint_files:Path.replace", 4),  # between the renames of two checkpoints
        ("sparsify.training.folder.checkpoint_files:Path.replace", 5),
        ("sparsify.training.records.log:Log.write", 2),
        ("sparsify.training.run.train:_save", 2),
    ],
)
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bits(
    tmp_path: Path, whole: Path, place: str, call: int
) -> None:
    hook = (signal_at, place, call, signal.SIGKILL)
    assert run(*TRAIN, *OFTEN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook) == (-9, "")
    assert run("train", "--resume", tmp_path / "run", err=tmp_path / "err") == (0, "")
    assert_same(whole, tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in left if name.startswith(".") or name.endswith((".tmp", ".new"))]
    assert {name for name in left if name.startswith(("last", "step"))} == {"last.safetensors", "step-11.safetensors"}


def test_a_start_killed_before_its_recipe_was_written_does_not_stand_in_the_way(tmp_path: Path, whole: Path) -> None:
    for place in ("sparsify.training.folder.run_folder:atomic_write", "sparsify.formats.io.atomic:os.replace"):
        hook = (signal_at, place, 1, signal.SIGKILL)
        assert run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook) == (-9, "")
        assert (tmp_path / "run").is_dir() and not (tmp_path / "run" / "recipe.yaml").exists()
    assert run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err") == (0, "")
    assert_same(whole, tmp_path / "run")


def test_a_run_has_one_writer_whose_death_frees_it(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    first = start(*TRAIN, "--out", folder, err=tmp_path / "first", hook=(nth_call, PAUSE, 5, _sleep))
    deadline = time.monotonic() + 100
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and first.process.is_alive()
        time.sleep(0.05)
    before = (folder / "metrics.jsonl").read_bytes()
    for arguments in (["train", "--resume", folder], [*TRAIN, "--out", folder, "--overwrite"]):
        code, err = run(*arguments, err=tmp_path / "second")
        assert code == 2 and err.count("\n") == 1 and "Traceback" not in err
        assert f"process {first.process.pid} on " in err
    assert (folder / "metrics.jsonl").read_bytes() == before
    first.process.kill()
    assert first.end()[0] == -9
    assert run("train", "--resume", folder, err=tmp_path / "second") == (0, "")
    assert_same(whole, folder)


def test_a_folder_that_goes_away_ends_the_run_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hook = (_rename_at, PAUSE, 2, folder)
    code, err = run(*TRAIN, *OFTEN, "--out", folder, err=tmp_path / "err", hook=hook)
    assert code == 1 and err.count("\n") == 1 and "was moved, removed or replaced" in err
    assert run("train", "--resume", tmp_path / "elsewhere", err=tmp_path / "err") == (0, "")


def _sleep() -> None:
    time.sleep(600)


def _rename_at(place: str, number: int, folder: Path) -> None:
    nth_call(place, number, lambda: folder.rename(folder.with_name("elsewhere")))
