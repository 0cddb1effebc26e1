"""remove(): chosen units go with all that is tied to them, or an error says why not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import sparsify
from sparsify.errors import SparsifyError


class Residual(nn.Module):
    """Two layers that are added, a third between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.back = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.back(F.relu(self.inner(x)))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


EXAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("converted", [False, True])
def test_units_go_with_everything_that_is_tied_to_them(converted: bool) -> None:
    model = Residual()
    if converted:
        sparsify.convert(model)
    report = sparsify.remove(model, EXAMPLE, {"back": [1, 4], "inner.weight": [0]})
    small = report.model
    sizes = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    assert sizes["stem.weight"] == (4, 3, 3, 3) and sizes["back.weight"] == (4, 4, 1, 1)
    assert sizes["norm.weight"] == (4,) and sizes["inner.weight"] == (4, 4, 1, 1) and sizes["head.weight"] == (4, 4)
    expected = Residual().eval()
    with torch.no_grad():
        for parameter in (expected.stem.weight, expected.stem.bias, expected.norm.weight, expected.norm.bias):
            parameter[[1, 4]] = 0
        for parameter in (expected.back.weight, expected.back.bias):
            parameter[[1, 4]] = 0
        for parameter in (expected.inner.weight, expected.inner.bias):
            parameter[[0]] = 0
    torch.testing.assert_close(small.eval()(EXAMPLE), expected(EXAMPLE), rtol=1e-5, atol=1e-6)
    assert model.stem.weight.shape == (6, 3, 3, 3) and not sparsify.get_masks(model) or converted


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"stem": [6]}, "remove: stem: 6 is no unit of it; they are 0 to 5"),
        ({"stem": [-1]}, "remove: stem: -1 is no unit of it"),
        ({"stme": [1]}, "remove: 'stme' is not in the model; name a layer or its weight; did you mean 'stem'?"),
        ({"head": [1]}, "remove: the units of head cannot go: it is part of the outputs, or tied to what is"),
        ({"norm": [1]}, "remove: 'norm' is no layer whose weight takes a mask"),
        ({"stem": 1}, "remove: stem: 1 is no list of units, as [2, 6, 9]"),
        ({"stem": torch.tensor(1)}, "remove: stem: tensor(1) is no list of units"),
        ({"stem": np.array(1)}, "remove: stem: array(1) is no list of units"),
        ({"stem": [True]}, "remove: stem: True is no unit of it"),
        ({"stem": torch.tensor([True, False])}, "remove: stem: tensor(True) is no unit of it"),
        ({"stem": [1.0]}, "remove: stem: 1.0 is no unit of it"),
        ({"stem": range(10**12)}, "remove: stem: 6 is no unit of it; they are 0 to 5"),
        ({"inner": range(5)}, "remove: nothing would be left of inner.weight"),
    ],
)
def test_what_cannot_go_is_told_and_nothing_changes(units: dict[str, Any], message: str) -> None:
    model = Residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SparsifyError) as error:
        sparsify.remove(model, EXAMPLE, units)
    assert message in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "orthogonal": orthogonal,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_units_of_computed_weights_are_removed_and_the_weights_stored(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(COMPUTED[name](nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    small = sparsify.remove(model, x, {"0": [1, 4]}).model
    hidden = model[1](model[0](x)).index_fill(1, torch.tensor([1, 4]), 0)
    torch.testing.assert_close(small(x), model[2](hidden))
    assert small[0].weight.shape == (4, 4) and type(small[0]) is nn.Linear


@pytest.mark.parametrize(
    "indices", [torch.tensor([1, 4]), np.array([1, 4]), {1, 4}, (i for i in (1, 4)), range(1, 5, 3)]
)
def test_indices_of_any_kind(indices: Any) -> None:
    cuts = sparsify.remove(Residual(), EXAMPLE, {"stem": indices}).cuts
    assert cuts.removed["stem.weight"][0] == (1, 4)


def test_units_of_an_embedding_are_removed() -> None:
    model = nn.Sequential(nn.Embedding(5, 6), nn.ReLU(), nn.Linear(6, 2))
    small = sparsify.remove(model, torch.tensor([[0, 3]]), {"0": [2]}).model
    assert small[0].weight.shape == (5, 5) and small[2].weight.shape == (2, 5)
