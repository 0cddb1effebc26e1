"""What is made in inference mode may be trained afterwards, since the public functions leave that mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w - self.w.mean(1, keepdim=True))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def pruned(**pruning: Any) -> nn.Sequential:
    model = plain()
    sparsify.convert(model, ignore=["last"])
    sparsify.Pruner(model, {"sparsity": 0.5, "schedule": "one_shot", **pruning}, 1).start()
    return model


def trained(model: nn.Module) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(X).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("make", [plain, Standardised, lambda: nn.LSTM(6, 4)], ids=["linear", "computed", "lstm"])
def test_a_model_is_converted(make: Callable[[], nn.Module]) -> None:
    model = make()
    with torch.inference_mode():
        assert sparsify.convert(model).masked
        assert sparsify.verify(model, X).ok
    outputs = model(X)
    (outputs[0] if isinstance(outputs, tuple) else outputs).sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        sparsify.fold,
        lambda model: sparsify.shrink(model, X).model,
        lambda model: sparsify.mask_also(model, ["0.bias"]) or model,
        lambda model: sparsify.convert(model) and model,
    ],
    ids=["fold", "shrink", "mask_also", "convert"],
)
def test_what_becomes_of_a_model(make: Callable[[nn.Module], nn.Module]) -> None:
    model = pruned(granularity="unit", scope="layer")
    with torch.inference_mode():
        made = make(model)
    trained(made)


def test_a_file_is_loaded_even_into_what_was_made_in_inference_mode(tmp_path: Path) -> None:
    model = pruned()
    sparsify.save(model, tmp_path / "model.safetensors")
    own = plain()
    with torch.inference_mode():
        inferring = plain()
        for target in (own, inferring):
            sparsify.load(tmp_path / "model.safetensors", target)
            assert torch.equal(target(X), model(X))
    trained(own)


def test_masks_change_in_inference_mode_and_outside_in_turn() -> None:
    model = plain()
    sparsify.convert(model)
    pruner = sparsify.Pruner(model, {"sparsity": 0.5, "schedule": {"name": "cyclic", "cycles": 3}}, 12)
    for step in range(12):
        with torch.inference_mode(step % 2 == 0):
            pruner.step()
        model(X).sum().backward()
    assert pruner.finished and round(pruner.report().reached, 2) == 0.5


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_a_criterion_takes_its_gradients(criterion: str) -> None:
    found = []
    batch = X, torch.tensor([0, 1, 2])
    for mode in (False, True):
        model = plain()
        sparsify.convert(model)
        pruning = {"sparsity": 0.5, "schedule": "one_shot", "scope": "filter", "criterion": criterion}
        with torch.inference_mode(mode):
            sparsify.Pruner(model, pruning, 1, example_input=X).start([batch], F.cross_entropy)
        found.append(torch.cat([mask.flatten() for mask in sparsify.get_masks(model).values()]))
    assert torch.equal(*found)
