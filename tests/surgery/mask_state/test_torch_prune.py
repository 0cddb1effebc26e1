"""Masks of torch.nn.utils.prune, taken over whole or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sparsify import SparsifyError, convert, fold, get_masks, save, verify
from tests.surgery.fingerprint import fingerprint


class Gate(nn.Module):
    """A module of one's own: a scale of its own, a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.scale


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 6, 3), nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


def iterative(module: nn.Module) -> None:
    prune.l1_unstructured(module[0], "weight", amount=0.3)
    prune.random_unstructured(module[0], "weight", amount=0.5)
    prune.ln_structured(module[0], "weight", amount=1, n=2, dim=0)
    prune.l1_unstructured(module[0], "bias", amount=2)


def everywhere(module: nn.Module) -> None:
    pruned = [(module[0], "weight"), (module[1], "weight"), (module[1], "bias")]
    prune.global_unstructured(pruned, pruning_method=prune.L1Unstructured, amount=9)


def by_mask(module: nn.Module) -> None:
    prune.custom_from_mask(module[1], "weight", torch.tensor([1.0, 0, 1, 1, 0, 1, 0, 0]))
    prune.identity(module[1], "bias")


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any], Tensor]] = {
    "iterative": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), iterative, torch.randn(5, 8)),
    "global": (lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), everywhere, torch.randn(5, 8)),
    "mask": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), by_mask, torch.randn(5, 8)),
    "lstm": (
        lambda: nn.LSTM(8, 6, 2),
        lambda m: [prune.l1_unstructured(m, name, amount=0.4) for name in ("weight_hh_l0", "bias_ih_l1")],
        torch.randn(5, 2, 8),
    ),
    "cell": (lambda: nn.GRUCell(8, 6), lambda m: prune.l1_unstructured(m, "bias_ih", amount=0.4), torch.randn(5, 8)),
    "attention": (
        Attention,
        lambda m: [
            prune.l1_unstructured(m.attention, "in_proj_weight", amount=0.4),
            prune.l1_unstructured(m.attention, "in_proj_bias", amount=0.4),
            prune.l1_unstructured(m.attention.out_proj, "weight", amount=0.4),
        ],
        torch.randn(5, 2, 8),
    ),
    "own": (
        Gate,
        lambda m: [prune.l1_unstructured(m, name, amount=0.5) for name in ("scale", "weight")],
        torch.randn(5, 8),
    ),
    "structured": (
        Structured,
        lambda m: [prune.ln_structured(m.conv, "weight", 2, n=2, dim=0), prune.l1_unstructured(m.norm, "weight", 2)],
        torch.randn(5, 2, 9),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 3)),
        lambda m: prune.l1_unstructured(m[0], "weight", amount=0.5),
        torch.tensor([[0, 4], [2, 1]]),
    ),
}


def output(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_masks_are_taken_over_whole(case: str, training: bool, tmp_path: Path) -> None:
    make, pruning, x = CASES[case]
    model = make().train(training)
    keys = [*model.state_dict()]
    pruning(model)
    expected = output(model, x) if not training else None
    masks = {name.removesuffix("_mask"): m.bool() for name, m in model.named_buffers() if name.endswith("_mask")}
    raw = {name.removesuffix("_orig"): p for name, p in model.named_parameters() if name.endswith("_orig")}
    convert(model)
    assert [key for key in model.state_dict() if not key.endswith("_mask")] == keys
    assert not prune.is_pruned(model)
    assert all(model.get_parameter(name) is parameter for name, parameter in raw.items())
    assert all(torch.equal(get_masks(model)[name], mask) for name, mask in masks.items())
    if expected is not None:
        assert torch.equal(output(model, x), expected)
        assert torch.equal(output(fold(model), x), expected)
    report = verify(model, x)
    assert report.ok and set(report.live) == set(report.masked), str(report)
    save(model, tmp_path / "dense.safetensors", format="dense")
    assert set(load_file(tmp_path / "dense.safetensors")) == set(keys)


def test_the_optimiser_goes_on_with_the_same_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[0], "bias", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    gradients = {id(p): p.grad for p in model.parameters()}
    convert(model)
    assert all(p.grad is gradients[id(p)] for p in model.parameters())
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    before = model[0].bias.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].bias, before)


def test_recurrent_layers_use_what_was_taken_over() -> None:
    model = nn.LSTM(8, 6)
    prune.l1_unstructured(model, "weight_hh_l0", amount=0.5)
    prune.l1_unstructured(model, "bias_hh_l0", amount=0.5)
    convert(model)
    flat = [model.get_parameter(name) for name in model._flat_weights_names]
    assert all(a is b for a, b in zip(model._flat_weights, flat, strict=True))
    x = torch.randn(3, 2, 8)
    before = model(x)[0]
    with torch.no_grad():
        model.weight_hh_l0.add_(1)
    assert not torch.equal(model(x)[0], before)


def test_an_ignored_weight_keeps_its_mask_as_one_that_is_not_counted() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    x = torch.randn(4, 8)
    expected = model(x)
    report = convert(model, ignore=["last"])
    assert [*report.masked] == ["0.weight"] and report.skipped == {"1.weight": "ignored by 'last'"}
    assert report.notes == ["masks of torch.nn.utils.prune on parameters that sparsities do not count: 1.weight"]
    assert torch.equal(model(x), expected) and int(get_masks(model)["1.weight"].sum()) == 12


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def with_other_values() -> nn.Module:
    return nn.Sequential(prune.custom_from_mask(nn.Linear(8, 8), "weight", torch.full((8, 8), 0.5)))


def unread() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].spare = nn.Parameter(torch.randn(3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[0], "spare", amount=1)
    return model


def inside_a_parametrization() -> nn.Module:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    prune.l1_unstructured(model[0].parametrizations.weight, "original1", amount=0.5)
    return model


def behind_a_norm() -> nn.Module:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    prune.l1_unstructured(model[0], "weight_orig", amount=0.5)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tied, "0.weight cannot be taken over: 1.weight is the same parameter without this mask"),
        (with_other_values, "0.weight cannot be taken over: it holds values other than 0 and 1"),
        (unread, "0.spare cannot be taken over: no forward was found to read it"),
        (inside_a_parametrization, "another weight is computed from this parameter"),
        (behind_a_norm, "another weight is computed from this parameter"),
    ],
)
def test_what_cannot_be_taken_over_is_one_error_and_nothing_is_changed(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = make()
    before = fingerprint(model)
    with pytest.raises(SparsifyError, match=rf"^convert: the mask .*{message}; call torch.nn.utils.prune.remove\("):
        convert(model)
    assert fingerprint(model) == before


def test_the_advice_works() -> None:
    model = unread()
    prune.remove(model.get_submodule("0"), "spare")
    assert [*convert(model).masked] == ["0.weight"]
