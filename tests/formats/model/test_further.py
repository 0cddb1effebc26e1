"""Masks on biases and norm parameters in files: they come back as what they were, and count as no weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsify import SparsifyError, convert, get_masks, set_masks, verify
from sparsify.export.save import inspect_file, load, save
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.mask_state.masks import masked_weights
from tests.formats.model.test_files import assert_same_masks, outputs, plain

# A weight that the conversion ignored is among them.
FURTHER = ["0.weight", "0.bias", "1.weight", "1.bias"]


def masked(seed: int = 0) -> nn.Sequential:
    model = plain(seed)
    convert(model, ignore=["first"])
    mask_also(model, FURTHER)
    generator = torch.Generator().manual_seed(seed)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}])
def test_further_parameters_come_back_with_their_masks(tmp_path: Path, options: dict[str, Any]) -> None:
    model, target = masked(), plain(1).eval()
    save(model, tmp_path / "a", **options)
    load(tmp_path / "a", target)
    assert_same_masks(target, model)
    assert list(masked_weights(target)) == ["4.weight"]
    assert torch.equal(outputs(target), outputs(model))
    for name, mask in get_masks(target).items():
        assert not target.get_parameter(name)[~mask].any()
    assert verify(target, torch.randn(2, 3, 8, 8)).ok


def test_a_model_built_from_its_name_gets_the_masks(tmp_path: Path) -> None:
    from sparsify import build_model

    model = build_model("cifar:resnet20", num_classes=3)
    convert(model)
    mask_also(model, ["bn1.bias", "fc.bias"])
    set_masks(model, {"fc.bias": torch.tensor([True, False, True])})
    save(model, tmp_path / "a", spec="cifar:resnet20", arguments={"num_classes": 3})
    loaded = load(tmp_path / "a")
    assert_same_masks(loaded, model)
    assert get_masks(loaded)["fc.bias"].tolist() == [True, False, True]
    assert list(masked_weights(loaded)) == list(masked_weights(model))


def test_a_converted_model_gets_the_masks_that_it_lacks_and_keeps_its_own(tmp_path: Path) -> None:
    model, target = masked(), plain(1).eval()
    convert(target)
    mask_also(target, ["4.bias"])
    set_masks(target, {"4.bias": torch.zeros(5)})
    save(model, tmp_path / "a")
    load(tmp_path / "a", target)
    assert set(get_masks(target)) == {*get_masks(model), "4.bias"} and get_masks(target)["4.bias"].all()
    assert list(masked_weights(target)) == ["0.weight", "4.weight"]
    assert torch.equal(outputs(target), outputs(model))


@pytest.mark.parametrize("fold", [True, False])
def test_dense_files_and_folded_models_hold_zeros(tmp_path: Path, fold: bool) -> None:
    model, target = masked(), plain(1).eval()
    save(model, tmp_path / "a", format="sparse" if fold else "dense")
    load(tmp_path / "a", target, fold=fold)
    assert not get_masks(target) and torch.equal(outputs(target), outputs(model))
    assert torch.equal(tensor(target, "1.bias") == 0, ~get_masks(model)["1.bias"] | (tensor(model, "1.bias") == 0))


def tensor(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def test_the_file_says_which_are_no_weights_and_its_figures_are_of_the_weights(tmp_path: Path) -> None:
    model = masked()
    save(model, tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        table = json.loads(file.metadata()["masked"])
    assert {name: entry.get("also") for name, entry in table.items()} == {
        **dict.fromkeys(FURTHER, True),
        "4.weight": None,
    }
    summary = inspect_file(tmp_path / "a")
    kept = int(get_masks(model)["4.weight"].sum())
    assert (summary.masked_entries, summary.kept) == (5 * 216, kept)
    rows = {row.name: row.kept for row in summary.rows}
    assert rows["1.bias"] == int(get_masks(model)["1.bias"].sum()) and rows["1.running_mean"] is None


def test_a_further_mask_that_the_model_cannot_carry_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    model = masked()
    save(model, tmp_path / "a")
    target = plain(1)
    target[1].forward = lambda input: input  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(
        SparsifyError, match=r"a: mask_also: 1.weight cannot be masked: its module's forward was replac"
    ):
        load(tmp_path / "a", target)
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())
