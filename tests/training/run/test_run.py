import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparsify.errors import RunError, SparsifyError
from sparsify.export.save import inspect_file, load, save
from sparsify.formats.model.masks import load_masks
from sparsify.models import build_model
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, set_masks
from sparsify.training.folder.checkpoint import read_state, write_state
from sparsify.training.recipe.read import parse_recipe
from sparsify.training.run import keeper
from sparsify.training.run.train import TrainResult, train
from sparsify.training.setup.prepare import prepare

UNION = {
    "sparsity": 0.5,
    "schedule": {"name": "cyclic", "cycles": 3},
    "after_cycles": "union",
    "end": 0.9,
    "every": "1it",
}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 10)
    )


def recipe(*, prune: dict[str, Any] | None = UNION, optimizer: Any = "sgd", **train_settings: Any) -> dict[str, Any]:
    """Return a recipe of 4 epochs of 3 steps."""
    settings = {"epochs": 4, "log_every": 1, "device": "cpu", "optimizer": optimizer, **train_settings}
    declared = {"model": "cifar:resnet20", "data": {"name": "digits", "batch_size": 500}, "train": settings}
    return declared | ({"prune": prune} if prune else {})


def states(result: TrainResult) -> dict[str, torch.Tensor]:
    return dict(result.model.state_dict())


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the run's records without the clock's."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same(one: TrainResult, other: TrainResult) -> None:
    assert states(one).keys() == states(other).keys()
    for key, value in states(one).items():
        assert torch.equal(value, states(other)[key]), key
    assert records(one.folder) == records(other.folder)


def test_a_run_leaves_recipe_records_checkpoints_and_a_model_that_loads(tmp_path: Path) -> None:
    result = train(recipe(), out=tmp_path / "a", model=small_model())
    assert {path.name for path in (tmp_path / "a").iterdir() if not path.name.startswith("events")} == {
        "recipe.yaml",
        "metrics.jsonl",
        "conditions.json",
        "checkpoints",
        "masks",
        "model.preprocess.json",
        "model.safetensors",
    }
    assert list((tmp_path / "a").glob("events.out.tfevents.*"))
    assert [record["step"] for record in records(tmp_path / "a")] == list(range(1, 13))
    loaded = load(tmp_path / "a" / "model.safetensors", small_model())
    for name, mask in get_masks(result.model).items():
        assert torch.equal(mask, get_masks(loaded)[name])
    assert inspect_file(tmp_path / "a" / "model.safetensors").sparsity == pytest.approx(0.5)
    assert result.metrics["test_accuracy"] == records(tmp_path / "a")[-1]["test_accuracy"]


def test_equal_seed_gives_equal_bits_and_another_seed_others(tmp_path: Path) -> None:
    first, second, third = (
        train(recipe(seed=seed), out=tmp_path / name, model=small_model())
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert_same(first, second)
    assert records(first.folder) != records(third.folder)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 7, 12])
@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}, {"name": "adamw", "lr": 0.01}]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, optimizer: dict[str, Any]
) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == at:
            raise Killed

    whole = train(recipe(optimizer=optimizer), out=tmp_path / "whole", model=small_model())
    monkeypatch.setattr(keeper, "_LONGEST_SECONDS", 0.0)  # a checkpoint at every record, within epochs too
    with pytest.raises(Killed):
        train(recipe(optimizer=optimizer), out=tmp_path / "cut", model=small_model(), on_record=kill)
    # What is written after a checkpoint and before the kill must vanish.
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99}\n')
    assert_same(whole, train(None, out=tmp_path / "cut", resume=True, model=small_model()))


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    def kill(record: dict[str, Any]) -> None:
        raise Killed

    whole = train(recipe(), out=tmp_path / "whole", model=small_model())
    with pytest.raises(Killed):
        train(recipe(), out=tmp_path / "cut", model=small_model(), on_record=kill)
    assert not list((tmp_path / "cut").glob("checkpoints/*"))
    assert_same(whole, train(None, out=tmp_path / "cut", resume=True, model=small_model()))


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path) -> None:
    first = train(recipe(), out=tmp_path, model=small_model())
    again = train(None, out=tmp_path, resume=True, model=small_model())
    assert_same(first, again)
    assert again.metrics["test_accuracy"] == first.metrics["test_accuracy"]


def test_accumulated_batches_take_the_step_of_one_batch_as_large(tmp_path: Path) -> None:
    # Three batches of 500 in one step: the gradient of all 1,500 images, batch norm aside.
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    data = {"name": "digits", "crop_padding": 0}
    whole = recipe(prune=None, epochs=2) | {"data": data | {"batch_size": 1500}}
    parts = recipe(prune=None, epochs=2, accumulate=3) | {"data": data | {"batch_size": 500}}
    one, other = train(whole, out=tmp_path / "a", model=model()), train(parts, out=tmp_path / "b", model=model())
    assert [record["step"] for record in records(other.folder)] == [1, 2]
    torch.testing.assert_close(states(one), states(other))


@pytest.mark.parametrize("prune", [None, UNION])
def test_a_loss_of_nan_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path, prune: dict[str, Any] | None) -> None:
    model = small_model()

    def poison(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            model[5].bias.data.fill_(torch.nan)

    with pytest.raises(RunError, match="the loss became nan at step 5 of 12"):
        train(recipe(prune=prune), out=tmp_path, model=model, on_record=poison)
    assert read_state(tmp_path / "checkpoints" / "last.safetensors")["step"] == 3
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_that_become_nan_are_the_runs_failure_and_not_a_mistake_in_the_criterion(tmp_path: Path) -> None:
    # An endless gradient: the loss of the step is still a number, the weights after it are none.
    class Steep(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            if out.requires_grad:
                out.register_hook(lambda gradient: gradient * torch.inf)
            return out

    model = nn.Sequential(nn.Flatten(), Steep(64, 10))
    with pytest.raises(RunError, match="weights are no longer numbers after step 1 of 12"):
        train(recipe(), out=tmp_path, model=model, check=False)


def test_a_model_of_ones_own_needs_none_in_the_recipe(tmp_path: Path) -> None:
    declared = recipe(epochs=1)
    del declared["model"]
    first = train(declared, out=tmp_path / "a", model=small_model())
    assert "name: python:Sequential" in (tmp_path / "a" / "recipe.yaml").read_text()
    assert_same(first, train(declared, out=tmp_path / "a", resume=True, model=small_model()))
    with pytest.raises(SparsifyError, match="'python:Sequential' was given from Python"):
        train(None, out=tmp_path / "a", resume=True)
    with pytest.raises(SparsifyError, match="model: missing key"):
        train(declared, out=tmp_path / "b")


def test_best_is_the_best_at_the_final_sparsity(tmp_path: Path) -> None:
    train(recipe(), out=tmp_path, model=small_model())
    best = inspect_file(tmp_path / "checkpoints" / "best.safetensors")
    final = [r["test_accuracy"] for r in records(tmp_path) if "test_accuracy" in r and r["step"] >= 11]
    assert best.metadata.metrics["test_accuracy"] == max(final)
    assert best.sparsity == pytest.approx(0.5)


def test_an_existing_run_is_refused_and_nothing_of_it_touched(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    train(recipe(epochs=1), out=run, model=small_model())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(SparsifyError, match="already holds a run; go on with --resume ('.*/a run'), or give"):
        train(recipe(epochs=1), out=run, model=small_model())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_overwrite_removes_the_runs_files_and_no_others(tmp_path: Path) -> None:
    train(recipe(epochs=1), out=tmp_path, model=small_model())
    (tmp_path / "notes.txt").write_text("mine")
    train(recipe(epochs=2), out=tmp_path, overwrite=True, model=small_model())
    assert len(records(tmp_path)) == 6
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SparsifyError, match="holds other files"):
        train(recipe(), out=tmp_path, overwrite=True, model=small_model())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_with_another_recipe_is_refused(tmp_path: Path) -> None:
    train(recipe(epochs=1), out=tmp_path, model=small_model())
    with pytest.raises(SparsifyError, match="train.epochs"):
        train(recipe(epochs=2), out=tmp_path, resume=True, model=small_model())


@pytest.mark.parametrize("folder", ["missing", "."])
def test_resume_where_there_is_no_run_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(SparsifyError, match="no such run|not a run"):
        train(None, out=tmp_path / folder, resume=True, model=small_model())


@pytest.mark.parametrize(
    "settings", [{"channels_last": True}, {"precision": "bf16"}, {"recalibrate_batch_norm": 2}, {"clip_grad_norm": 0.1}]
)
def test_options_change_the_run_and_keep_it_whole(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = train(recipe(epochs=2), out=tmp_path / "plain", model=small_model())
    result = train(recipe(epochs=2, **settings), out=tmp_path / "other", model=small_model())
    assert len(records(result.folder)) == 6 and result.report is not None and result.report.reached == 0.5
    if "channels_last" in settings:
        assert result.model[0].weight.stride() == (9, 1, 3, 1)
    else:
        assert any(not torch.equal(value, states(plain)[key]) for key, value in states(result).items())
    if "recalibrate_batch_norm" in settings:
        assert int(result.model[1].num_batches_tracked) == 2


def test_snip_gets_its_batches_before_the_first_step(tmp_path: Path) -> None:
    snip = {"criterion": "snip", "scope": "global", "sparsity": 0.5, "schedule": "one_shot"}
    result = train(recipe(prune=snip, epochs=1), out=tmp_path, model=small_model())
    assert [record["sparsity"] for record in records(tmp_path)] == [0.5] * 3
    assert result.report is not None and result.report.reached == 0.5


def test_a_criterion_of_the_users_own_trains_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_first(weights: Any, context: Any) -> Any:
        return {name: -weight.abs() for name, weight in weights.items()}

    declared = recipe(prune={**UNION, "criterion": largest_first})
    whole = train(declared, out=tmp_path / "whole", model=small_model())
    monkeypatch.setattr(keeper, "_LONGEST_SECONDS", 0.0)

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(declared, out=tmp_path / "cut", model=small_model(), on_record=kill)
    assert_same(whole, train(declared, out=tmp_path / "cut", resume=True, model=small_model()))


def test_the_masks_that_a_model_came_with_stay_through_a_run_without_pruning(tmp_path: Path) -> None:
    found = train(recipe(), out=tmp_path / "found", model=small_model())
    masks = get_masks(found.model)
    save(found.model, tmp_path / "masks", format="masks")
    model = small_model()
    load_masks(tmp_path / "masks", model)
    whole = train(recipe(prune=None), out=tmp_path / "whole", model=model)
    assert all(torch.equal(mask, masks[name]) for name, mask in get_masks(whole.model).items())
    assert all(record["sparsity"] == pytest.approx(0.5) for record in records(tmp_path / "whole"))
    assert inspect_file(tmp_path / "whole" / "model.safetensors").sparsity == pytest.approx(0.5)


def test_a_recipe_s_masks_are_put_on_its_model_after_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("timm:test_resnet", num_classes=10)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pt")
    convert(model, ignore=["last"])
    set_masks(model, {name: torch.rand(mask.shape) < 0.2 for name, mask in get_masks(model).items()})
    save(model, tmp_path / "masks", format="masks")
    section = {"name": "timm:test_resnet", "checkpoint": str(tmp_path / "weights.pt"), "masks": str(tmp_path / "masks")}
    prepared = prepare(parse_recipe({**recipe(prune=None), "model": section}))
    trained = prepared.training.model
    assert prepared.verification is not None and prepared.verification.ok and prepared.training.pruner is None
    assert list(get_masks(trained)) == list(get_masks(model))
    assert all(torch.equal(mask, get_masks(model)[name]) for name, mask in get_masks(trained).items())
    assert all(torch.equal(trained.state_dict()[name], value) for name, value in weights.items())
    assert prepared.training.sparsity == pytest.approx(0.8, abs=0.01)


def test_the_masks_at_the_end_of_each_cycle_are_kept(tmp_path: Path) -> None:
    result = train(recipe(epochs=5), out=tmp_path / "run", model=small_model(), check=False)
    files = sorted((tmp_path / "run" / "masks").iterdir())
    assert [file.name for file in files] == ["cycle-1.safetensors", "cycle-2.safetensors", "cycle-3.safetensors"]
    first, second, last = (load_masks(file) for file in files)
    final = get_masks(result.model)
    assert last.keys() == final.keys()
    for name, mask in final.items():
        assert torch.equal(last[name], mask)
        # The last cycle prunes the union of the two before it; those are at the target, half of each layer.
        assert not (mask & ~(first[name] | second[name])).any()
        assert first[name].sum() == second[name].sum() == mask.numel() - mask.numel() // 2
    assert any(not torch.equal(first[name], second[name]) for name in final)


def test_cycles_that_are_cut_off_have_no_masks_and_others_no_folder(tmp_path: Path) -> None:
    cyclic = {"sparsity": 0.5, "schedule": {"name": "cyclic", "cycle_length": "4it"}, "end": "10it", "every": "1it"}
    train(recipe(prune=cyclic), out=tmp_path / "cut", model=small_model(), check=False)
    # Cycles from 0, 4 and 6 on: the second one is cut off where the last begins.
    assert {file.name for file in (tmp_path / "cut" / "masks").iterdir()} == {
        "cycle-1.safetensors",
        "cycle-3.safetensors",
    }
    train(recipe(prune={"sparsity": 0.5}), out=tmp_path / "other", model=small_model(), check=False)
    assert not (tmp_path / "other" / "masks").exists()


def test_masks_of_cycles_are_those_of_a_run_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 9:
            raise Stop

    declared = recipe(epochs=5)
    train(declared, out=tmp_path / "whole", model=small_model(), check=False)
    with pytest.raises(Stop):
        train(declared, out=tmp_path / "broken", model=small_model(), check=False, on_record=stop)
    train(declared, out=tmp_path / "broken", model=small_model(), check=False, resume=True)
    for number in (1, 2, 3):
        one, other = (
            load_masks(tmp_path / name / "masks" / f"cycle-{number}.safetensors") for name in ("whole", "broken")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_run_in_the_place_of_another_leaves_none_of_its_masks(tmp_path: Path) -> None:
    train(recipe(epochs=5), out=tmp_path / "run", model=small_model(), check=False)
    train(recipe(prune={"sparsity": 0.5}), out=tmp_path / "run", model=small_model(), check=False, overwrite=True)
    assert not list((tmp_path / "run").glob("masks/*"))


def test_a_run_goes_on_from_a_checkpoint_of_the_first_version(tmp_path: Path) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 7:
            raise Killed

    whole = train(recipe(), out=tmp_path / "whole", model=small_model())
    with pytest.raises(Killed):
        train(recipe(), out=tmp_path / "cut", model=small_model(), on_record=kill)
    path = tmp_path / "cut" / "checkpoints" / "last.safetensors"
    with safe_open(path, framework="pt") as file:
        old = {"sparsify_checkpoint": "1", "state": file.metadata()["state"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file(tensors, path, metadata=old)
    assert_same(whole, train(None, out=tmp_path / "cut", resume=True, model=small_model()))


def test_a_damaged_checkpoint_is_one_line_with_its_name_and_nothing_is_changed(tmp_path: Path) -> None:
    train(recipe(epochs=1), out=tmp_path, model=small_model())
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SparsifyError, match=r"last\.safetensors: damaged checkpoint") as caught:
        train(None, out=tmp_path, resume=True, model=small_model())
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_what_a_run_needs_is_damaged(tmp_path: Path) -> None:
    train(recipe(epochs=1), out=tmp_path, model=small_model())
    path = tmp_path / "checkpoints" / "last.safetensors"
    write_state(path, {key: value for key, value in read_state(path).items() if key != "optimizer"})
    with pytest.raises(SparsifyError, match=r"last\.safetensors: damaged checkpoint \(without optimizer\)"):
        train(None, out=tmp_path, resume=True, model=small_model())


def test_a_progress_bar_shows_the_steps_and_the_last_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    declared = recipe(prune=None, epochs=1)
    result = train(
        declared, out=tmp_path, model=small_model(), progress=True, on_record=lambda record: seen.append(record["step"])
    )
    shown = capsys.readouterr().err
    assert seen == [1, 2, 3] and "3/3" in shown and f"loss={result.metrics['loss']:.4f}" in shown
    train(declared, out=tmp_path, overwrite=True, model=small_model())
    assert capsys.readouterr().err == ""
