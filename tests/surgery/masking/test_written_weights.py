"""Forwards that change their weight in place: the parameter changes as before the conversion."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, fold, set_masks, verify
from tests.surgery.products import Forward, module_of

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Clipped(nn.Module):
    """Clips its weight at every call, as a WGAN's critic does."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(3 * torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.w.clamp_(-1, 1)
        return F.linear(x, self.w)


class Replaced(nn.Linear):
    """Renormalises its rows by putting other values into `.data`."""

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 1.0)
        return super().forward(input)


class Below(nn.Module):
    """Writes to the weight of its child, which it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.l.weight[0] *= 0.5
        return F.linear(x, self.l.weight)


@pytest.mark.parametrize("build", [Clipped, lambda: Replaced(8, 4), Below], ids=["clamp_", ".data", "item"])
def test_what_a_forward_writes_to_its_weight_reaches_the_parameter(build: type[nn.Module]) -> None:
    model = build()
    plain = copy.deepcopy(model)
    (name,) = convert(model).masked
    for _ in range(2):
        assert torch.equal(model(X), plain(X))
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))


def test_the_values_under_a_mask_stay() -> None:
    model = Clipped()
    convert(model)
    mask = torch.rand(4, 8) > 0.5
    set_masks(model, {"w": mask})
    before = model.w.detach().clone()
    model(X).sum().backward()
    assert torch.equal(model.w[~mask], before[~mask]) and torch.equal(model.w[mask], before[mask].clamp(-1, 1))
    assert model.w.grad is not None and not model.w.grad[~mask].any()


def added(self: nn.Module, x: Tensor) -> Tensor:
    weight = self.w * 1
    weight.add_(0.5)
    return F.linear(x, weight)


def added_to_a_copy(self: nn.Module, x: Tensor) -> Tensor:
    weight = self.w.clone()
    weight.add_(0.5)
    return F.linear(x, weight)


def chained(self: nn.Module, x: Tensor) -> Tensor:
    weight = self.w / 2
    weight.clamp_(-0.3, 0.3).mul_(2)
    torch.tanh_(weight)
    return F.linear(x, weight)


@pytest.mark.parametrize("forward", [added, added_to_a_copy, chained])
def test_a_computed_weight_that_is_changed_in_place_is_folded_as_it_is_used(forward: Forward) -> None:
    model = module_of(forward, w=(4, 8))
    expected = model(X)
    assert convert(model).masked == {"w": "computed"}
    assert torch.equal(model(X), expected) and verify(model, X).ok
    mask = torch.rand(4, 8) < 0.5
    set_masks(model, {"w": mask})
    folded = fold(model)
    assert torch.equal(folded(X), model(X))
    assert torch.equal(model(torch.eye(8)).t() != 0, mask)


def test_a_computed_weight_that_is_detached_gets_no_gradient_when_it_is_folded() -> None:
    model = module_of(lambda self, x: F.linear(x, self.w / 2) + F.linear(x, (self.v / 2).detach()), w=(4, 8), v=(4, 8))
    convert(model)
    folded = fold(model)
    folded(X).sum().backward()
    assert folded.get_parameter("w").grad is not None and folded.get_parameter("v").grad is None


def test_a_weight_of_two_real_parameters_is_masked_where_they_are_stored() -> None:
    model = module_of(lambda self, x: (x * 1j @ torch.complex(self.re, self.im)).abs(), re=(8, 4), im=(8, 4))
    assert convert(model).masked == {"re": "substituted", "im": "substituted"}
    set_masks(model, {"re": torch.rand(8, 4) < 0.5})
    assert torch.equal(fold(model)(X), model(X)) and verify(model, X).ok
