"""Passes of forwards with forward-mode gradients, and with operations that call others (torch.cond, flex_attention)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import flex_attention

from sparsify import SparsifyError
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.shrink.shrink import shrink


class Calls(nn.Module):
    """A model whose forward is a function of it and the input."""

    def __init__(self, function: Callable[["Calls", Tensor], object]) -> None:
        super().__init__()
        self.function, self.count = function, 2
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def dual(m: Calls, x: Tensor) -> object:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(m.last(m.first(forward_ad.make_dual(x, torch.ones_like(x))).tanh())).tangent


FORWARD_MODE: dict[str, Callable[[Calls, Tensor], object]] = {
    "torch.func.jvp": lambda m, x: torch.func.jvp(lambda t: m.last(m.first(t).tanh()), (x,), (torch.ones_like(x),)),
    "a dual level": dual,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # by torch's own decompositions
@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode_gradients_keep_what_they_meet_with_a_reason(name: str) -> None:
    model = Calls(FORWARD_MODE[name])
    assert not record(model, torch.randn(3, 4)).branches
    found = analyse(model, torch.randn(3, 4))
    assert found.groups == 0 and found.barriers[0].startswith("first: operation ")


def test_tensors_on_the_meta_device_are_constants_of_which_nothing_is_known() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        shape = (m.first.weight.to("meta") + 1).shape
        output: Tensor = m.last(m.first(x).relu()) * shape[0]
        return output

    assert analyse(Calls(forward), torch.randn(3, 4)).groups == 4


def test_one_hot_takes_the_keywords_that_torch_takes() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        one_hot: Any = torch.nn.functional.one_hot
        output: Tensor = m.last(m.first(one_hot(input=x, num_classes=4).float()).relu())
        return output

    assert analyse(Calls(forward), torch.tensor([1, 3])).groups == 4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_steps_of_flex_attention_are_seen_and_its_heads_removed() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        heads = m.first(x).view(2, 3, m.count, 2).transpose(1, 2)
        output: Tensor = m.last(flex_attention(heads, heads, heads).transpose(1, 2).flatten(2))
        return output

    torch.manual_seed(0)
    model, x = Calls(forward).eval(), torch.randn(2, 3, 4)
    assert analyse(model, x).groups == 2
    with torch.no_grad():
        model.first.weight[:2] = 0
    small = shrink(model, x, dead="zeros").model
    assert small.first.out_features == 2 and small.count == 1
    with torch.no_grad():  # on a CPU it has no gradients
        torch.testing.assert_close(small(x), model(x))


def test_a_branch_of_torch_cond_is_a_branch_on_values() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(
            x.sum() > 0, lambda t: m.last(m.first(t).relu()), lambda t: m.last(m.first(t)), (x,)
        )
        return chosen

    found = analyse(Calls(forward), torch.randn(3, 4))
    assert found.groups == 0 and "asks what activations hold" in found.barriers[0]


def test_a_higher_order_operator_that_cannot_be_recorded_is_named() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        first = x.new_zeros(3)
        output: Tensor = scan(lambda carry, t: (carry + t, carry * t), first, m.first(x), dim=1)[1]
        return output

    with pytest.raises(SparsifyError, match="'scan', a higher-order operator"):
        analyse(Calls(forward), torch.randn(3, 4))
