"""Training that starts from a checkpoint of any kind: its masks and its cuts come in with its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsify
from sparsify.errors import SparsifyError
from sparsify.start import read_start
from sparsify.surgery.mask_state.masks import masked_weights
from sparsify.training.run.train import TrainResult, train

SPEC = "cifar:resnet20"


def build() -> nn.Module:
    torch.manual_seed(5)
    return sparsify.build_model(SPEC, num_classes=10)


def pruned(sparsity: float = 0.5, granularity: str = "weight") -> nn.Module:
    model = build()
    sparsify.convert(model, ignore=["last"])
    scope = "layer" if granularity == "unit" else "global"
    settings = {"sparsity": sparsity, "scope": scope, "granularity": granularity, "schedule": "one_shot"}
    sparsify.Pruner(model, settings, 1, example_input=torch.zeros(1, 3, 32, 32)).start()
    return model


def run(folder: Path, checkpoint: Path, prune: dict[str, Any] | None = None, **model: Any) -> TrainResult:
    recipe: dict[str, Any] = {
        "model": {"name": SPEC, "checkpoint": str(checkpoint), **model},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "train": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, "log_every": 1, "device": "cpu"},
    }
    return train(recipe | ({"prune": prune} if prune else {}), out=folder, check=False)


def masks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.mask.clone() for name, weight in masked_weights(model).items()}


def test_the_masks_of_a_sparse_file_stay_while_its_model_is_trained(tmp_path: Path) -> None:
    model = pruned()
    sparsify.save(model, tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    result = run(tmp_path / "run", tmp_path / "a.safetensors")
    found, before = masks_of(result.model), masks_of(model)
    assert all(torch.equal(found[name], before[name]) for name in before)
    again = sparsify.load(tmp_path / "run" / "model.safetensors")
    assert {name: int(mask.sum()) for name, mask in masks_of(again).items()} == {
        name: int(mask.sum()) for name, mask in before.items()
    }
    assert result.metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_ramp_starts_at_the_sparsity_of_the_file_and_only_removes(tmp_path: Path) -> None:
    model = pruned()
    sparsify.save(model, tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    seen: list[float] = []
    ramp = {"sparsity": 0.9, "scope": "global", "schedule": "linear", "end": 1.0, "every": "1it", "ignore": ["last"]}
    recipe = {
        "model": {"name": SPEC, "checkpoint": str(tmp_path / "a.safetensors")},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "train": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, "log_every": 1, "device": "cpu"},
        "prune": ramp,
    }
    result = train(recipe, out=tmp_path / "run", check=False, on_record=lambda record: seen.append(record["sparsity"]))
    assert seen == pytest.approx([0.6, 0.7, 0.8, 0.9], abs=1e-4)
    before, after = masks_of(model), masks_of(result.model)
    assert not any(bool((after[name] & ~before[name]).any()) for name in before)


def test_less_than_what_the_file_has_removed_is_refused(tmp_path: Path) -> None:
    sparsify.save(pruned(), tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    with pytest.raises(SparsifyError, match=r"prune\.sparsity: sparsity 0\.2 is below the 0\.5 that the masks remove"):
        run(tmp_path / "run", tmp_path / "a.safetensors", {"sparsity": 0.2, "scope": "global", "ignore": ["last"]})


def test_a_shrunk_file_is_trained_and_pruned_on(tmp_path: Path) -> None:
    small = sparsify.shrink(pruned(granularity="unit"), torch.randn(1, 3, 32, 32)).model
    sparsify.save(small, tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    result = run(tmp_path / "run", tmp_path / "a.safetensors", {"sparsity": 0.5, "scope": "layer"})
    widths = {name: value.shape for name, value in small.named_parameters()}
    assert {name: value.shape for name, value in result.model.named_parameters()} == widths
    again = sparsify.load(tmp_path / "run" / "model.safetensors")
    assert {name: value.shape for name, value in again.named_parameters()} == widths
    assert sum(value.numel() for value in again.parameters()) < sum(value.numel() for value in build().parameters())


def test_a_run_and_its_folder_are_checkpoints(tmp_path: Path) -> None:
    sparsify.save(pruned(), tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    run(tmp_path / "run", tmp_path / "a.safetensors")
    start = read_start(tmp_path / "run")
    assert start.metadata.spec == SPEC and len(start.masks) == len(masks_of(pruned()))


def test_masks_of_torchs_pruning_come_in(tmp_path: Path) -> None:
    model = build()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        prune.l1_unstructured(module, "weight", amount=0.5)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    fresh = build()
    report = read_start(tmp_path / "a.pt").into(fresh)
    assert report.masks == len(convolutions)
    for (_, weight), module in zip(masked_weights(fresh).items(), convolutions, strict=True):
        assert torch.equal(weight.mask, module.weight_mask.bool())
        assert torch.equal(weight.parameter, module.weight_orig)


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "a.b."])
def test_a_prefix_of_all_keys_is_dropped_and_told(prefix: str, tmp_path: Path) -> None:
    model = build()
    torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, tmp_path / "a.pt")
    fresh = sparsify.build_model(SPEC, num_classes=10)
    report = read_start(tmp_path / "a.pt").into(fresh)
    assert report.prefix == ("" if prefix == "module." else prefix)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_a_prefix_of_some_keys_is_named(tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in build().state_dict().items()}
    torch.save({**state, "criterion.weight": torch.ones(10)}, tmp_path / "a.pt")
    with pytest.raises(SparsifyError, match=r"are the model's behind 'model\.'"):
        read_start(tmp_path / "a.pt").into(build())


def test_a_head_for_other_classes_stays_as_initialised_and_dense(tmp_path: Path) -> None:
    sparsify.save(pruned(), tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 10})
    wider = sparsify.build_model(SPEC, num_classes=7)
    report = read_start(tmp_path / "a.safetensors").into(wider)
    assert len(report.reinitialised) == 2 and report.masks == len(masks_of(wider))


def test_a_module_of_ones_own_keeps_the_recipes_spec_where_its_state_fits(tmp_path: Path) -> None:
    recipe = {
        "model": SPEC,
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "train": {"epochs": 1, "log_every": 9, "device": "cpu"},
    }
    own = build()
    train(recipe, model=own, out=tmp_path / "fits", check=False)
    again = sparsify.load(tmp_path / "fits")
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in again.state_dict().items())
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    train(recipe, model=other, out=tmp_path / "other", check=False)
    assert "name: python:Sequential" in (tmp_path / "other" / "recipe.yaml").read_text()
