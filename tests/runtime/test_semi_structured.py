"""Which weights become torch's semi-structured tensors, and that 2:4 masks are what torch's own conversion takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import sparsify
from sparsify.runtime.semi_structured import is_two_of_four


def two_of_four(shape: torch.Size) -> Tensor:
    """Return a mask that keeps two of each four neighbours of the last dimension, at random."""
    order = torch.rand(*shape[:-1], shape[-1] // 4, 4).argsort(-1)
    return (order < 2).reshape(shape)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = {"fc": nn.Linear(64, 32), "loose": nn.Linear(64, 32), "conv": nn.Conv2d(4, 4, 1)}
    model = nn.ModuleDict({**layers, "attention": nn.MultiheadAttention(32, 2)}).half()
    sparsify.convert(model)
    masks = sparsify.get_masks(model)
    sparsify.set_masks(model, {name: two_of_four(mask.flatten(1).shape).view_as(mask) for name, mask in masks.items()})
    model["loose"].weight_mask[3, :3] = True
    return model


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 1, 0, 0, 0, 1, 0, 1], True),
        ([0, 0, 0, 0, 1, 0, 0, 0], True),
        ([1, 1, 0, 1, 0, 0, 0, 0], False),
        ([0, 0, 1, 1, 1, 1, 0, 0], True),  # four in a row, but not of one group
        ([1, 0, 0], False),
    ],
)
def test_two_of_four_worked_by_hand(row: list[int], expected: bool) -> None:
    assert is_two_of_four(torch.tensor([row], dtype=torch.float16)) == expected


def test_the_dense_weight_of_a_two_of_four_mask_is_what_torch_s_conversion_takes(model: nn.Module) -> None:
    weight = sparsify.fold(model)["fc"].weight.detach()
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    assert values.shape == (32, 32)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, places), weight)


def test_each_weight_is_converted_or_named_with_the_reason(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def twice(weight: Tensor) -> Tensor:
        given.append(weight)
        return weight * 2

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", twice)
    report = sparsify.to_semi_structured(model)
    folded = sparsify.fold(model)
    assert report.converted == ("fc.weight",)
    assert {name: reason.partition(":")[0] for name, reason in report.skipped.items()} == {
        "loose.weight": "not 2",
        "conv.weight": "Conv2d",
        "attention.in_proj_weight": "MultiheadAttention",
        "attention.out_proj.weight": "NonDynamicallyQuantizableLinear",
    }
    assert len(given) == 1 and torch.equal(given[0], folded["fc"].weight)
    assert torch.equal(report.model["fc"].weight, 2 * folded["fc"].weight)
    assert torch.equal(report.model["loose"].weight, folded["loose"].weight)
    assert sparsify.get_masks(model) and not sparsify.get_masks(report.model)
    assert str(report).splitlines()[0] == "semi-structured: 1 of 5 weights" and str(report).count("\n") == 4


def test_a_folded_model_is_looked_through_for_its_linear_weights(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight * 2)
    folded = sparsify.fold(model)
    report = sparsify.to_semi_structured(folded)
    assert report.converted == ("fc.weight",) and report.skipped.keys() == {"loose.weight"}
    assert torch.equal(report.model["fc"].weight, 2 * folded["fc"].weight)
    assert sparsify.to_semi_structured(folded["fc"]).converted == ("weight",)


def test_what_torch_refuses_stays_dense_and_is_named() -> None:
    model = nn.Sequential(nn.Linear(64, 32)).half()
    sparsify.convert(model)
    sparsify.set_masks(model, {"0.weight": two_of_four(torch.Size([32, 64]))})
    report = sparsify.to_semi_structured(model)
    assert not report.converted and report.skipped["0.weight"].startswith("torch does not take it: ")
    assert "cuda" in report.skipped["0.weight"].lower()
    assert torch.equal(report.model[0].weight, sparsify.fold(model)[0].weight)
    report = sparsify.to_semi_structured(model.double())
    assert report.skipped == {"0.weight": "float64: torch takes float16, bfloat16 and int8"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu_the_outputs_are_those_of_the_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    sparsify.convert(model)
    masks = {name: two_of_four(mask.shape) for name, mask in sparsify.get_masks(model).items()}
    sparsify.set_masks(model, masks)
    model.half().cuda()
    report = sparsify.to_semi_structured(model)
    assert report.converted == ("0.weight", "2.weight") and "torch does not take it" in report.skipped["4.weight"]
    x = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        found, wanted = report.model(x).float(), sparsify.fold(model)(x).float()
    assert (found - wanted).abs().max() <= 5e-3 * wanted.abs().max()
