"""Forwards that change their weight in place: the parameter changes as before the conversion."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, set_masks

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
