import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.signals import Signals
from cli.view import progress
from sparsify.training.recipe.read import read_recipe

from .conftest import Outcome

RECIPE = Path(__file__).parents[2] / "recipes" / "dense.yaml"
FEW = ["--model", "timm:test_resnet", "--device", "cpu", "--set", "data.limit=60", "--set", "data.batch_size=30"]


def test_a_run_says_how_long_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    more = ["--set", "train.epochs=3", "--set", "train.log_every=1", "--out", tmp_path / "a"]
    code, out, err = sparsify("train", RECIPE, *FEW, *more)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(line.startswith("about 0:00:") and line.endswith("by the first 1 step") for line in lines) == 1
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.endswith(" left") for line in epochs] == [True, True, False]
    # A dense model is what a pruning starts from.
    assert any("gradual.yaml --model timm:test_resnet --data digits --set model.checkpoint=" in line for line in lines)


def test_what_is_proposed_after_a_dense_run_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(RECIPE.parents[1])
    more = ["train.epochs=1", "data.image_size=16", "model.arguments={drop_rate: 0.1}"]
    given = [word for setting in more for word in ("--set", setting)]
    code, out, err = sparsify("train", RECIPE, *FEW, *given, "--out", tmp_path / "a run")
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.startswith("  sparsify train ")]
    assert "--set data.image_size=16" in line and "limit" not in line
    code, out, err = sparsify(*shlex.split(line)[1:], *FEW[2:], "--set", "train.epochs=1")
    assert (code, err) == (0, "")
    recipe = read_recipe(tmp_path / "a run-pruned" / "recipe.yaml")
    assert (recipe.data.image_size, recipe.model.arguments) == (16, {"drop_rate": 0.1})
    assert f"  sparsify bench '{tmp_path / 'a run-pruned'}'" in out.splitlines()


def test_a_run_that_goes_on_estimates_by_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    more = ["--set", "train.epochs=3", "--set", "train.log_every=1", "--out", tmp_path / "a"]
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "asked", lambda _: True)  # after a step, before its record
        assert sparsify("train", RECIPE, *FEW, *more).code == 130
    code, out, err = sparsify("train", "--resume", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "going on after step 1 of 6" in out and "by the first 1 step\n" in out and "first 0 steps" not in out


def test_long_plans_are_told_by_cycle_and_whole_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPE.with_name("linear_ramp.yaml")
    more = ["--set", "train.epochs=100", "--set", "prune.every=1it", "--no-verify", "--dry-run"]
    short = sparsify("train", recipe, *FEW, *more).out
    whole = sparsify("train", recipe, *FEW, *more, "--full").out
    assert "every update: --full" in short and len(short.splitlines()) < 25
    assert len(whole.splitlines()) > 100 and "every update: --full" not in whole
    assert "373,658 parameters" in short and "multiply-adds for an image" in short and "its file: about " in short
    assert list(tmp_path.iterdir()) == []


def test_full_belongs_to_a_dry_run(sparsify: Callable[..., Outcome]) -> None:
    assert sparsify("train", RECIPE, "--full").code == 2
