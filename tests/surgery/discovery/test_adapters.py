"""Adapters that compute a layer's weight anew: masks hold on it, or convert says that none can enter."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.func import functional_call as called_with
from torch.nn.utils.parametrizations import weight_norm

from sparsify import convert, fold, get_masks, set_masks, verify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Adapter(nn.Module):
    """Adds the product of two small matrices to the weight of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 6)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class Branching(Adapter):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


class Holder(nn.Module):
    """Reads a layer that is no child of its own."""

    def __init__(self, base: nn.Linear, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(6, 2))
        self.__dict__["held"] = {"list": [base], "dict": {0: base}, "object": base}[how]

    def forward(self, x: Tensor) -> Tensor:
        base = self.held if isinstance(self.held, nn.Module) else self.held[0]
        return F.linear(x, base.weight + self.b @ self.a)


class Reader(Holder):
    def __init__(self, base: nn.Linear, how: str) -> None:
        super().__init__(base, how)
        del self.a, self.b

    def forward(self, x: Tensor) -> Tensor:
        base = self.held if isinstance(self.held, nn.Module) else self.held[0]
        return F.linear(x, base.weight, base.bias)


class Apart(nn.Module):
    def __init__(self, kind: type[Holder], how: str) -> None:
        super().__init__()
        self.base, self.leave = nn.Linear(8, 6), nn.Linear(6, 4)
        self.adapter = kind(self.base, how)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.adapter(x))


@pytest.mark.parametrize("kind", [Adapter, Branching])
def test_a_weight_that_another_is_computed_from_is_said_to_be_dense(kind: type[nn.Module]) -> None:
    model = kind()
    report = convert(model)
    assert report.skipped["base.weight"] == f"{kind.__name__} computes another weight from it"
    assert "base.weight" not in report.masked and verify(model, X).ok


@pytest.mark.parametrize("how", ["list", "dict", "object"])
@pytest.mark.parametrize("kind", [Holder, Reader])
def test_a_weight_that_is_read_from_afar_is_said_to_be_dense(kind: type[Holder], how: str) -> None:
    model = Apart(kind, how)
    report = convert(model)
    reason = "adapter reads it although it belongs to another module: masks cannot be applied there"
    assert report.skipped["base.weight"] == reason
    assert "leave.weight" in report.masked and verify(model, X).ok


class Functional(Adapter):
    """Calls its layer with another weight."""

    def forward(self, x: Tensor) -> Tensor:
        weights = {"weight": self.base.weight + self.b @ self.a, "bias": self.base.bias}
        return functional_call(self.base, weights, (x,)) + self.base(x)  # type: ignore[no-any-return]


class FunctionalBelow(Functional):
    """Calls a module with another weight of a layer below it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.block[2].weight + self.b @ self.a
        return functional_call(self.block, {"2.weight": weight}, (x,)) + F.linear(x, self.base.weight)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Functional, FunctionalBelow])
def test_a_layer_that_is_called_with_other_weights_uses_these(kind: type[nn.Module]) -> None:
    plain: Any = kind().eval()
    model: Any = kind().eval()
    model.load_state_dict(plain.state_dict())
    report = convert(model)
    assert "base.weight" in report.masked and torch.equal(model(X), plain(X))
    assert verify(model, X).identical_eval and verify(model, X).identical_train
    with torch.no_grad():
        model.a.mul_(2)
        plain.a.mul_(2)
    assert torch.equal(model(X), plain(X))  # what is added counts
    set_masks(model, {"base.weight": torch.zeros(6, 8, dtype=torch.bool)})
    assert not torch.equal(model(X), plain(X))
    torch.testing.assert_close(fold(model)(X), model(X))


class Given(Adapter):
    """Calls its layer, by another name for functional_call, with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return called_with(self.base, {"weight": self.own}, (x,))  # type: ignore[no-any-return]


class Stepped(FunctionalBelow):
    """Calls its layers with the weights after one step of gradient descent (MAML)."""

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.block.named_parameters())
        with torch.enable_grad():
            loss = functional_call(self.block, weights, (x,)).square().mean()
            gradients = torch.autograd.grad(loss, [*weights.values()])
        after = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
        return functional_call(self.block, after, (x,))  # type: ignore[no-any-return]


class Ensemble(Given):
    """Calls its layer with several weights at once."""

    def forward(self, x: Tensor) -> Tensor:
        def one(weight: Tensor) -> Tensor:
            return functional_call(self.base, {"weight": weight}, (x,))  # type: ignore[no-any-return]

        return torch.vmap(one)(torch.stack([self.own, -self.own.relu()])).sum(0)


@pytest.mark.parametrize("kind", [Given, Stepped, Ensemble, Functional, FunctionalBelow])
def test_weights_given_by_functional_call_are_those_of_the_folded_model(kind: type[nn.Module]) -> None:
    model = kind()
    before = model(X)
    notes = convert(model).notes
    assert f"{kind.__name__}: masks are not applied to weights that it gives to submodules by functional_call" in notes
    torch.testing.assert_close(model(X), before, atol=0, rtol=0)
    set_masks(model, {name: torch.rand(mask.shape) < 0.5 for name, mask in get_masks(model).items()})
    torch.testing.assert_close(fold(model)(X), model(X))
    assert verify(model, X).identical_train


class Scaled(nn.Module):
    """Reads one weight directly and computes another one of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.halved = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.direct) + F.linear(x, self.halved / 2)


class SometimesFunctional(Adapter):
    """Calls its block with its own weights, or by functional_call with doubled ones."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU(), Scaled(), self.base)

    def forward(self, x: Tensor, factor: float = 1) -> Tensor:
        if factor == 1:
            return self.block(x)  # type: ignore[no-any-return]
        weights = {name: factor * weight for name, weight in self.block.named_parameters()}
        return functional_call(self.block, weights, (x,))  # type: ignore[no-any-return]


def test_weights_that_are_computed_are_masked_below_a_forward_with_functional_call() -> None:
    model = SometimesFunctional()
    before = model(X), model(X, factor=2)
    convert(model)
    assert torch.equal(model(X), before[0]) and torch.equal(model(X, factor=2), before[1])
    set_masks(model, {name: torch.rand(mask.shape) < 0.5 for name, mask in get_masks(model).items()})
    torch.testing.assert_close(fold(model)(X), model(X))
    scaled = model.block[2]
    assert isinstance(scaled, Scaled) and verify(model, X).ok
    masks = get_masks(scaled)
    expected = F.linear(X, scaled.direct * masks["direct"]) + F.linear(X, scaled.halved / 2 * masks["halved"])
    torch.testing.assert_close(scaled(X), expected)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 6)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_layer_called_with_other_weights_remembers_the_call() -> None:
    model: Any = Functional()
    model.base = Counting()
    convert(model)
    model(X)
    assert model.base.calls == 2 and isinstance(model.base.weight, nn.Parameter)
