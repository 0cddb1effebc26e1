"""Forwards that keep a state or draw numbers run by PyTorch, call by call as the model; trials leave no trace."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import EngineWarning
from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Convolution(nn.Module):
    """`after` is given the module, the input and what the convolution makes of it."""

    def __init__(self, after: Callable[[Any, Tensor, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.after = nn.Conv2d(3, 5, 3), [after]
        self.register_buffer("total", torch.zeros(()))
        self.held = copy.deepcopy(attributes)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.after[0](self, x, self.conv(x))


def counts(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Makes a difference from the 13th call on, long after the engine has compared its outputs."""
    module.count += 1
    return y * 2 if module.count > 12 else y


def sums(module: Any, x: Tensor, y: Tensor) -> Tensor:
    module.total += x.mean()
    return y - module.total


def warms_up(module: Any, x: Tensor, y: Tensor) -> Tensor:
    module.count, module.total = module.count + 1, module.total + y.mean()
    return y + module.total if module.count > 12 else y


def lists(module: Any, x: Tensor, y: Tensor) -> Tensor:
    module.held.setdefault("seen", []).append(y.mean())
    return y + sum(module.held["seen"])


def remembers(module: Any, x: Tensor, y: Tensor) -> Tensor:
    before = module.held.get("before")
    module.held["before"] = y
    return y if before is None else y + before


def draws(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return y + 1e-3 * torch.rand(())


def draws_in_python(module: Any, x: Tensor, y: Tensor) -> Tensor:
    return y * (random.random() + float(np.random.rand()))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def engine_and_model(module: nn.Module) -> tuple[Engine, nn.Module]:
    """Return an engine, and a copy of the model that was called once, as the engine was for its example."""
    model = copy.deepcopy(module).eval()
    seed(1)
    engine = compile(module, X, tune=False)
    found = random.random(), float(np.random.rand()), float(torch.rand(()))
    seed(1)
    with torch.no_grad():
        model(X)
    assert found == (random.random(), float(np.random.rand()), float(torch.rand(())))
    return engine, model


@pytest.mark.parametrize("after", [counts, sums, warms_up, lists, remembers, draws, draws_in_python])
def test_calls_are_those_of_the_model(after: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    why = "keeps a state from one call to the next: (count|total)|two calls with equal inputs give different outputs"
    with pytest.warns(EngineWarning, match=f"is left to PyTorch: .*({why})"):
        engine, model = engine_and_model(Convolution(after))
    for call in range(15):
        x = X * (call + 1)
        seed(call)
        found = engine(x)
        seed(call)
        torch.testing.assert_close(found, model(x).detach())
    copy.deepcopy(engine)  # nothing of a trace is left in its model


def keeps_what_is_the_same(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """Keeps its last output for others to look at, and a table for as long as the sizes stay."""
    module.held["last"], module.held["self"] = y, module.held
    if module.held.get("sizes") != x.shape:
        module.held["sizes"], module.held["table"] = x.shape, torch.arange(5.0)[:, None, None]
    return y + module.held["table"]


def test_what_is_the_same_after_an_equal_call_is_no_state() -> None:
    engine, model = engine_and_model(Convolution(keeps_what_is_the_same))
    (strategy,) = engine.strategies.values()
    assert strategy.kind != "torch"
    for x in (X, -X, X[:1], X[..., 1:]):
        torch.testing.assert_close(engine(x), model(x).detach())
    copy.deepcopy(engine)
