"""Calls of an engine that something looks into, or with tensors of other classes: right there, or left to PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine

X, Y = torch.randn(2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Wrapper(nn.Module):
    """A model that has an engine for a part."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Any:
        return self.engine(x) * 2


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine(model: nn.Module) -> Engine:
    made = compile(model, X, tune=False)
    assert all(strategy.kind != "torch" for strategy in made.strategies.values())
    return made


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "recorded",
    [
        lambda wrapper: torch.jit.trace(wrapper, X),  # type: ignore[no-untyped-call]
        lambda wrapper: make_fx(wrapper)(X),
        lambda wrapper: torch.export.export(wrapper, (X,)).module(),
        lambda wrapper: torch.compile(wrapper, backend="eager"),
        lambda wrapper: torch.compile(wrapper, backend="aot_eager"),
    ],
    ids=["jit", "make_fx", "export", "compile", "aot_eager"],
)
def test_what_is_recorded_holds_for_other_inputs(recorded: Callable[[Any], Any], model: Any, engine: Engine) -> None:
    found = recorded(Wrapper(engine))
    for x in (X, Y):
        torch.testing.assert_close(found(x), model(x) * 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch itself
def test_transforms_go_through(model: Any, engine: Engine) -> None:
    batches = torch.stack([X, Y])
    torch.testing.assert_close(torch.vmap(engine)(batches), torch.vmap(model)(batches))
    found = torch.func.grad(lambda x: engine(x).square().sum())(X)
    assert bool(found.any())
    torch.testing.assert_close(found, torch.func.grad(lambda x: model(x).square().sum())(X))
    tangents = [torch.func.jvp(one, (X,), (Y,))[1] for one in (engine, model)]
    torch.testing.assert_close(*tangents)


def test_a_fake_tensor_has_no_memory_to_read(engine: Engine) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = engine(torch.randn(4, 3, 6, 6))
    assert found.shape == (4, 4, 2, 2) and type(found).__name__ == "FakeTensor"


class Doubling(Tensor):
    """Its ReLU is another function."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function is F.relu else result


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts convolutions."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_other_tensors_and_modes_see_operations(model: Any, engine: Engine) -> None:
    given = X.clone().as_subclass(Doubling)
    assert type(engine(given)) is Doubling
    torch.testing.assert_close(engine(given).as_subclass(Tensor), model(given).as_subclass(Tensor))
    torch.testing.assert_close(engine(nn.Parameter(X.clone())), model(X))
    with Counting() as counted:
        found = engine(X)
    assert counted.count == 2
    torch.testing.assert_close(found, model(X))
    assert "calls within a TorchDispatchMode: PyTorch" in str(engine) and "input of Doubling: PyTorch" in str(engine)
