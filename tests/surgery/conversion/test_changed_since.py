"""What other code did to a converted model since: refused in one line that says what to do, or worked with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsify import Pruner, SparsifyError, convert, fold, get_masks, verify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    return model


@pytest.mark.parametrize("call", [convert, fold, get_masks, lambda model: Pruner(model, {"sparsity": 0.5}, 3)])
def test_a_weight_that_was_parametrized_since_is_refused(call: Callable[[nn.Module], Any]) -> None:
    model = pruned()
    out = model(X)
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    with pytest.raises(SparsifyError, match=r"0\.weight was parametrized after the conversion"):
        call(model)
    parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=False)  # as the message says
    call(model)
    assert torch.equal(fold(pruned_like(model))(X), out) and verify(model, X).ok


def pruned_like(model: nn.Module) -> nn.Module:
    copy = pruned()
    copy.load_state_dict(model.state_dict())
    return copy


def test_a_weight_of_another_shape_is_not_broadcast() -> None:
    model = pruned()
    model[0].weight = nn.Parameter(torch.randn(1, 8))
    with pytest.raises(SparsifyError, match=r"Linear\.weight has shape \(1, 8\), its mask \(8, 8\)"):
        model(X)


def test_a_mask_that_was_deleted_is_named() -> None:
    model = pruned()
    del model[0].weight_mask
    with pytest.raises(SparsifyError, match=r"Linear\.weight_mask is gone"):
        model(X)


class Named(nn.Module):
    """Has a buffer and a method called as attributes of masked modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("masked_names", torch.ones(4))

    def dense_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.masked_names

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_forward(x)


def test_a_module_with_an_attribute_of_masked_modules_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Named())
    out = model(X)
    report = convert(model)
    assert (
        list(report.masked) == ["0.weight"] and "has an attribute masked_names of its own" in report.skipped["1.weight"]
    )
    assert torch.equal(model(X), out) and torch.equal(model[1].dense_forward(model[0](X)), out)


class Slotted(nn.Linear):
    """Keeps a value outside of its `__dict__`."""

    __slots__ = ("gain",)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


def test_slots_of_a_module_are_followed() -> None:
    model: Any = Slotted(8, 4)
    model.gain = 3.0
    out = model(X)
    assert list(convert(model).masked) == ["weight"] and torch.equal(model(X), out)
    model.gain = 6.0
    assert torch.equal(model(X), 2 * out)
