"""A conversion is decided before anything is changed, whatever things are called, and leaves nothing half done."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsify import SparsifyError, convert, get_masks, verify
from sparsify.surgery.conversion.mask_extra import mask_also
from tests.surgery.fingerprint import fingerprint

X = torch.randn(4, 6)


def parameter(module: nn.Module) -> None:
    module.weight_mask = nn.Parameter(torch.ones(6, 6))


def buffer(module: nn.Module) -> None:
    module.register_buffer("weight_mask", torch.ones(6, 6), persistent=False)


def submodule(module: nn.Module) -> None:
    module.weight_mask = nn.Identity()


def attribute(module: nn.Module) -> None:
    module.weight_mask = None  # type: ignore[assignment]


class WithProperty(nn.Linear):
    @property
    def weight_mask(self) -> Tensor:
        raise ValueError("not before training")


class WithMethod(nn.Linear):
    def weight_mask(self) -> Tensor:
        return self.weight != 0


class WithConstant(nn.Linear):
    weight_mask: Any = None


class Answering(nn.Linear):
    """Answers for attributes that it does not have."""

    def __getattr__(self, name: str) -> Any:
        return 0 if name == "weight_mask" else super().__getattr__(name)


class Gated(nn.Linear):
    """SNIP's way: a parameter called weight_mask, trained or read in the forward."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight_mask = nn.Parameter(torch.ones_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.weight_mask, self.bias)


def plain(change: Callable[[nn.Module], None]) -> nn.Module:
    module = nn.Linear(6, 6)
    change(module)
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: plain(parameter),
        lambda: plain(buffer),
        lambda: plain(submodule),
        lambda: plain(attribute),
        lambda: WithProperty(6, 6),
        lambda: WithMethod(6, 6),
        lambda: WithConstant(6, 6),
        lambda: Answering(6, 6),
        lambda: Gated(6, 6),
    ],
)
def test_a_name_that_is_taken_is_a_reason(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, 6))
    report = convert(model)
    assert [*report.masked] == ["0.weight", "2.weight"] == [*get_masks(model)]
    assert report.skipped.pop("1.weight") == "has an attribute weight_mask of its own"
    assert report.skipped in ({}, {"1.weight_mask": "is named as the mask of weight would be"})
    assert verify(model, X).ok


def test_a_name_that_is_taken_in_a_module_that_another_reads() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = plain(parameter)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.proj.weight, self.proj.bias)

    model = nn.Sequential(nn.Linear(6, 6), Parent())
    assert [*convert(model).masked] == ["0.weight"]
    assert verify(model, X).ok


class Final(type):
    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if any(isinstance(base, Final) for base in bases):
            raise TypeError(f"{name} is final")
        return super().__new__(cls, name, bases, namespace)


class FinalLinear(nn.Linear, metaclass=Final):
    pass


class FinalReader(nn.Module, metaclass=Final):
    """Reads the weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight)


@pytest.mark.parametrize("make", [lambda: FinalLinear(6, 6), FinalReader])
def test_a_class_that_cannot_be_derived_from_is_a_reason(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), make())
    before = type(model[1])
    report = convert(model)
    assert [*report.masked] == ["0.weight"] and type(model[1]) is before
    ((_, reason),) = report.skipped.items()
    assert reason.startswith(f"no class can be derived from {before.__name__}: TypeError: ")
    assert verify(model, X).ok


class Slotted(nn.Linear):
    __slots__ = ("extra",)


class Registered(nn.Linear):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise RuntimeError("no more classes")


class Frozen(nn.Linear):
    """Refuses attributes once it is made."""

    ready = False

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.__dict__["ready"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("ready") and name != "training":
            raise AttributeError("frozen")
        super().__setattr__(name, value)


@pytest.mark.parametrize("cls", [Slotted, Registered, Frozen])
def test_unusual_classes_are_masked(cls: type[nn.Linear]) -> None:
    model = nn.Sequential(cls(6, 6))
    assert [*convert(model).masked] == ["0.weight"] and isinstance(model[0], cls)
    assert verify(model, X).ok


class Refusing(nn.Linear):
    """Fails in the middle of a conversion."""

    def register_buffer(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no buffers here")


def whole() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 6), nn.BatchNorm1d(6), Gated(6, 6), nn.Linear(6, 6))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[1], "weight_hh_l0", amount=0.5)
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    model[4].register_forward_hook(lambda *_: None)
    return model


def test_a_pattern_that_matches_nothing_changes_nothing() -> None:
    model = whole()
    before, state = fingerprint(model), [*model.state_dict()]
    with pytest.raises(SparsifyError, match="'5' matches no weight"):
        convert(model, ignore=["5"])
    assert fingerprint(model) == before and [*model.state_dict()] == state


def test_an_error_in_the_middle_changes_nothing() -> None:
    model = whole().append(Refusing(6, 6))
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="no buffers here"):
        convert(model)
    assert fingerprint(model) == before
    plain_model = nn.Sequential(nn.Linear(6, 6), Refusing(6, 6))
    convert(plain_model, ignore=["last"])
    before = fingerprint(plain_model)
    with pytest.raises(RuntimeError, match="no buffers here"):
        mask_also(plain_model, ["0.bias", "1.bias"])
    assert fingerprint(plain_model) == before


def test_an_interrupt_in_the_middle_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole()
    before = fingerprint(model)
    registered = nn.Module.register_buffer

    def interrupted(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
        if self is model[4]:
            raise KeyboardInterrupt
        registered(self, name, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "register_buffer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model)
    assert fingerprint(model) == before


def test_what_is_known_of_a_module_is_asked_anew_by_each_conversion() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight_mask = None  # type: ignore[assignment]
    assert [*convert(model).masked] == ["0.weight"]
    del model[1].weight_mask
    assert [*convert(model).masked] == ["0.weight", "1.weight"]
    assert verify(model, X).ok
