"""What a forward does to its module, and what it reads of a weight besides its values: as before the conversion."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsify import convert, fold, get_masks, set_masks, verify

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """Reads the weight of its child; `change` does something to the module after that."""

    def __init__(self, change: Callable[[Any], Any], **more: Any) -> None:
        super().__init__()
        self.w, self.child, self.act = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 3), nn.ReLU()
        self.gain = nn.Parameter(torch.full((3,), 2.0))
        self.change = [change]
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.w) + F.linear(x, self.child.weight)
        for name in ("act", "late"):
            if getattr(self, name, None) is not None:
                y = getattr(self, name)(y)
        y = y if getattr(self, "gain", None) is None else y * self.gain
        self.change[0](self)
        return y


def delete(name: str) -> Callable[[Any], Any]:
    return lambda module: delattr(module, name) if hasattr(module, name) else None


def give(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda module: setattr(module, name, value)


CHANGES = {
    "a child is replaced": give("act", nn.Tanh()),
    "a child is added": give("late", nn.Sigmoid()),
    "a child is deleted": delete("act"),
    "a child becomes None": give("act", None),
    "a parameter becomes None": give("gain", None),
    "a parameter is deleted": delete("gain"),
    "the children that are read are exchanged": lambda module: setattr(module, "child", nn.Linear(6, 3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_module_stay(change: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model = Reader(change)
    plain = copy.deepcopy(model)
    assert {"w", "child.weight"} <= convert(model).masked.keys()
    for _ in range(3):
        torch.manual_seed(1)
        expected = plain(X)
        torch.manual_seed(1)
        assert torch.equal(model(X), expected)
    assert {*dict(model.named_modules())} == {*dict(plain.named_modules())}
    assert {*dict(model.named_parameters())} == {*dict(plain.named_parameters())}
    assert type(model.child).__name__ == "Linear" and model.child.weight.is_leaf


def test_a_module_that_keeps_itself_keeps_itself() -> None:
    model = Reader(lambda module: setattr(module, "me", ([module], {"me": module}, module.forward)))
    convert(model)
    model(X)
    model(X).sum().backward()
    (one,), of, method = model.__dict__["me"]
    assert one is of["me"] is method.__self__ is model
    copied = copy.deepcopy(model)
    assert copied.me[0][0] is copied and torch.equal(copied(X), model(X))


class Itself(nn.Module):
    """Reads its weight by way of a list that holds the module."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.ref = nn.Parameter(torch.randn(3, 6)), [self]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.ref[0].w) * (2 if self.ref[0] is self else 3)


def test_a_weight_that_is_read_by_way_of_the_module_itself_is_masked() -> None:
    model = Itself()
    expected = model(X)
    assert convert(model).masked == {"w": "substituted"} and torch.equal(model(X), expected)
    set_masks(model, {"w": torch.arange(18).reshape(3, 6) % 2 == 0})
    assert torch.equal(fold(model)(X), model(X)) and not torch.equal(model(X), expected)
    assert verify(model, X).ok


def test_what_is_noted_on_a_weight_can_be_read() -> None:
    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.child = nn.Parameter(torch.randn(3, 6)), nn.Linear(6, 3)
            self.w.scale, self.child.weight.scale = 2.0, 3.0  # type: ignore[attr-defined]

        def forward(self, x: Tensor) -> Tensor:
            scale = getattr(self.w, "scale", 1.0) * getattr(self.child.weight, "scale", 1.0)
            return (F.linear(x, self.w) + F.linear(x, self.child.weight)) * scale

    model = Noted()
    expected = model(X)
    assert len(convert(model).masked) == 2 and torch.equal(model(X), expected)


class Recomputed(nn.Module):
    """Computes its weight within activation checkpointing, which runs that part again in the backward pass."""

    def __init__(self, reentrant: bool, computes: bool) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 3)
        self.reentrant, self.computes = reentrant, computes

    def inner(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w - self.w.mean(1, keepdim=True) if self.computes else self.w).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


def test_a_name_that_contains_checkpoint_recomputes_nothing() -> None:
    class Loaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.checkpoint_path = nn.Parameter(torch.randn(5, 6)), "last.pt"

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.w - self.w.mean(1, keepdim=True)) * (1 if self.checkpoint_path else 2)

    assert list(convert(Loaded()).masked) == ["w"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("computes", [False, True])
def test_gradients_of_recomputed_activations_are_masked_or_the_weight_is_dense(reentrant: bool, computes: bool) -> None:
    model = Recomputed(reentrant, computes)
    plain = copy.deepcopy(model)
    report = convert(model)
    assert ("w" in report.masked) != computes
    assert not computes or "uses activation checkpointing" in report.skipped["w"]
    half = {name: torch.arange(mask.numel()).reshape(mask.shape) % 2 == 0 for name, mask in get_masks(model).items()}
    set_masks(model, half)
    with torch.no_grad():
        for name, mask in half.items():
            plain.get_parameter(name).masked_fill_(~mask, 0)
    gradients = []
    for one in (model, plain):
        x = X.clone().requires_grad_()
        one(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
