"""Weights that a forward reads by another way than as an attribute: masked through bound methods, else left out."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, fold, set_masks, verify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Methods(nn.Module):
    """Calls its own methods through what `keep` makes of them."""

    def __init__(self, keep: Callable[[Any], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8))
        self.kept = keep(self)
        self.calls = 0
        self.call = call

    def product(self, x: Tensor, factor: float = 1.0) -> Tensor:
        self.calls += 1
        return F.linear(x, self.w) * factor

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.kept, x)


KEPT: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "attribute": (lambda module: module.product, lambda kept, x: kept(x)),
    "list": (lambda module: [module.product, module.product], lambda kept, x: kept[0](x) + kept[1](x)),
    "dict": (lambda module: {"a": (module.product,)}, lambda kept, x: kept["a"][0](x)),
    "partial": (lambda module: partial(module.product, factor=3.0), lambda kept, x: kept(x)),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_bound_method_in_an_attribute_reads_the_masked_weight(name: str) -> None:
    model = Methods(*KEPT[name])
    convert(model)
    mask = torch.rand(4, 8) > 0.5
    set_masks(model, {"w": mask})
    kept = model.kept
    out = model(X)
    assert verify(model, X).ok
    assert model.kept is kept and model.calls > 0
    plain = Methods(*KEPT[name])
    plain.w.data = torch.where(mask, model.w, 0).detach()
    assert torch.equal(out, plain(X)) and torch.equal(fold(model)(X), out)
    assert torch.equal(copy.deepcopy(model)(X), out)


class Otherwise(nn.Module):
    """Reads its weight from what `keep` makes of the module, a closure or a list say."""

    def __init__(self, keep: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.w, self.l = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 4, bias=False)
        self.kept = keep(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(x)


def _closed_over(module: Any) -> Callable[[Tensor], Tensor]:
    weight = module.w
    return lambda x: F.linear(x, weight)


class Holder:
    def __init__(self, module: Any) -> None:
        self.weights = [module.w]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weights[0]


@pytest.mark.parametrize(
    "name, keep, reason",
    [
        ("w", _closed_over, "from a closure, a list or another object"),
        ("w", lambda module: partial(F.linear, weight=module.w), "from a closure, a list or another object"),
        ("w", Holder, "from a closure, a list or another object"),
        ("l.weight", lambda module: lambda x: F.linear(x, module.l.weight), "the function <lambda>"),
    ],
    ids=["closure", "partial", "object", "child"],
)
def test_a_weight_read_past_the_attribute_is_left_out_with_the_reason(name: str, keep: Any, reason: str) -> None:
    model = Otherwise(keep)
    report = convert(model)
    assert name not in report.masked and reason in report.skipped[name]


def test_verify_sees_a_closure_over_the_model_itself() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    convert(model)
    model.register_forward_hook(lambda module, args, output: output + F.linear(args[0], model[2].weight))
    assert "2.weight: linear saw the dense weight" in verify(model, X).problems
