"""Traces that modules share: only those whose forwards can not differ."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, set_masks
from sparsify.surgery.tracing.trace_cache import graphs_like


class Block(nn.Module):
    """A forward of its own, whose graph depends on everything that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.other = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("flag", torch.tensor([1.0, 2.0]))
        self.act: nn.Module = nn.Hardtanh()
        self.scales = {"of x": (1, 2.0)}

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight) * self.scales["of x"][1]
        return self.act(x)  # type: ignore[no-any-return]


def changed(change: Callable[[Block], Any]) -> Block:
    block = Block()
    change(block)
    return block


OTHERS: dict[str, Callable[[Block], Any]] = {
    "a setting": lambda b: setattr(b, "scales", {"of x": (1, 3.0)}),
    "a setting of another type": lambda b: setattr(b, "scales", {"of x": (True, 2.0)}),
    "a shape": lambda b: setattr(b, "weight", nn.Parameter(torch.randn(3, 4))),
    "a precision": lambda b: b.double(),
    "no parameter": lambda b: setattr(b, "other", None),
    "one parameter under two names": lambda b: setattr(b, "other", b.weight),
    "a buffer": lambda b: b.flag.add_(1),  # type: ignore[operator]
    "another child": lambda b: setattr(b, "act", nn.ReLU()),
    "a child's setting": lambda b: setattr(b.act, "max_val", 2.0),
    "one more child": lambda b: b.add_module("more", nn.Identity()),
    "its mode": lambda b: b.eval(),
    "something unknown": lambda b: setattr(b, "unknown", object()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_modules_that_differ_share_no_trace(name: str) -> None:
    known: dict[Any, Any] = {}
    first, second = graphs_like(Block(), known), graphs_like(changed(OTHERS[name]), known)
    assert len(known) == 1 + (name != "something unknown")
    assert len(first.graphs) == len(second.graphs) == 3 and not first.failure and not second.failure


def test_a_forward_that_cannot_be_traced_is_not_shared() -> None:
    class Branching(Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) if x.sum() > 0 else x

    known: dict[Any, Any] = {}
    assert graphs_like(Branching(), known).failure and graphs_like(Branching(), known).failure
    assert not known


def test_modules_that_are_alike_share_a_trace_and_no_mask() -> None:
    known: dict[Any, Any] = {}
    first, second = Block(), Block()
    graphs = [graphs_like(first, known), graphs_like(second, known)]
    assert len(known) == 1
    assert graphs[0].graphs is graphs[1].graphs and graphs[0].module is not graphs[1].module

    model = nn.Sequential(first, second)
    dense = copy.deepcopy(model)
    convert(model)
    x = torch.randn(2, 4)
    assert torch.equal(model(x), dense(x))
    mask = torch.tensor([[1, 0, 1, 1]] * 4)
    set_masks(model, {"1.weight": mask})
    with torch.no_grad():
        dense[1].weight *= mask  # type: ignore[operator]
    torch.testing.assert_close(model(x), dense(x))
