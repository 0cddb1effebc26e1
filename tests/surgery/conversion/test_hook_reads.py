"""A hook that reads a masked weight gets stored values; the conversion's notes say so."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import convert


def norm_of_weight(module: nn.Module, *_: Any) -> None:
    module.weight.norm()  # type: ignore[operator]


def norm_of_child(scale: float, module: nn.Module, *_: Any) -> None:
    module.get_submodule("0").weight.norm() * scale  # type: ignore[operator]


class Watch:
    def watch(self, module: nn.Module, *_: Any) -> None:
        norm_of_weight(module)
        module.weight.sum()  # type: ignore[operator]

    def __call__(self, module: nn.Module, *_: Any) -> None:
        module.weight.sum()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (lambda m: m[0].register_forward_hook(norm_of_weight), "0: its forward hook norm_of_weight reads weight"),
        (lambda m: m[0].register_forward_pre_hook(Watch().watch), "0: its forward pre-hook Watch.watch reads weight"),
        (lambda m: m[2].register_full_backward_hook(Watch()), "2: its backward hook Watch.__call__ reads weight"),
        (lambda m: m.register_forward_hook(partial(norm_of_child, 2.0)), "the model's forward hook norm_of_child"),
        (lambda m: m[0].register_forward_hook(lambda m, *_: m.weight.sum()), "0: its forward hook <lambda> reads"),
    ],
)
def test_a_hook_that_reads_a_weight_is_noted(register: Any, expected: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    register(model)
    (note,) = convert(model).notes
    assert note.startswith(expected)
    assert "where(module.weight_mask, module.weight, 0)" in note


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m[0].register_forward_hook(lambda module, args, out: out * 2),
        lambda m: m[0].register_forward_hook(lambda module, *_: print(module.weight.shape)),  # no value is read
        lambda m: m[1].register_forward_hook(norm_of_weight),  # a ReLU: nothing below it is masked
        lambda m: m[0].register_forward_hook(torch.nn.Identity()),
    ],
)
def test_a_hook_that_reads_no_weight_is_not(register: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    register(model)
    assert convert(model).notes == []


def test_hooks_of_torch_are_not_noted() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 4))
    assert not any("hook" in note for note in convert(nn.Sequential(layer)).notes)
