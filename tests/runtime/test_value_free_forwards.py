"""Forwards that look at numbers which no input affects, or take entries by an input's numbers, have kernels.

So have those with sizes that depend on values, as long as these stay the same.
"""

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import EngineWarning
from sparsify.runtime.tuning.search import Strategy


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 4)
        self.register_buffer("steps", torch.arange(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.last(y)  # type: ignore[no-any-return]


class Positions(Net):
    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[None].expand(len(x), -1)
        rising = positions[:, 1:] - positions[:, :-1] == 1
        if not rising.all() or int(self.steps[: x.shape[1]].max()) != x.shape[1] - 1:
            raise ValueError("never")
        return super().forward(x * (positions + 1)[..., None])


class Picked(Net):
    def forward(self, x: Tensor) -> Tensor:
        best = x.sum(-1).argmax(-1)
        return super().forward(x)[torch.arange(len(x)), best]


class Masked(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[x[..., 0] > 0]


class Found(Net):
    """The number of its rows is in shapes, and kernels come after it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = (x[..., 0] > 0).nonzero()
        return super().forward(x.flatten(0, 1)[rows[:, 0] * 5 + rows[:, 1]]).reshape(2, len(rows), 2) / len(rows)


class Distinct(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[torch.unique(x[..., 0] > 0).long()]


class Counted(Net):
    """Reads only the number of what it picks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / x[x > 0].shape[0]


class CountedDistinct(Net):
    """Reads only the number of distinct values of all images together."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(torch.unique(x > 0, return_counts=True)[1])


@pytest.mark.parametrize("cls", [Positions, Picked])
def test_kernels_run_them(cls: type[Net]) -> None:
    torch.manual_seed(0)
    model = cls().eval()
    engine = sparsify.compile(model, torch.randn(2, 5, 8), threads=1)
    (strategy,) = engine.strategies.values()
    assert strategy.seconds
    for _ in range(2):
        x = torch.randn(2, 5, 8)
        torch.testing.assert_close(engine(x), model(x))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cls", [Masked, Found, Distinct, Counted, CountedDistinct])
def test_kernels_run_what_values_size_until_a_call_has_another_size(cls: type[Net], threads: int) -> None:
    torch.manual_seed(0)
    model, x = cls().eval(), torch.randn(2, 5, 8).abs()
    engine = sparsify.compile(model, x, threads=threads)
    (strategy,) = engine.strategies.values()
    assert strategy.seconds
    engine.strategies = dict.fromkeys(engine.strategies, Strategy("split"))
    torch.testing.assert_close(engine(2 * x), model(2 * x))
    less = x.clone()
    less[0, :2] *= -1
    with pytest.warns(EngineWarning, match=r"left to PyTorch from now on: sizes depend on values \(\w+: \d.*, then "):
        torch.testing.assert_close(engine(less), model(less))
    assert "PyTorch: sizes depend on values" in str(engine)
    torch.testing.assert_close(engine(x), model(x))
    torch.testing.assert_close(engine(less), model(less))


def test_images_that_values_size_together_are_not_run_apart() -> None:
    model, x = CountedDistinct().eval(), torch.randn(2, 5, 8).abs()
    engine = sparsify.compile(model, x, threads=2, tune=False)
    assert [one.kind for one in engine.strategies.values()] == ["split"]
    apart = x * torch.tensor([1.0, -1.0]).reshape(2, 1, 1)  # one distinct value in each image, two in both
    with pytest.warns(EngineWarning, match="left to PyTorch from now on: sizes depend on values"):
        torch.testing.assert_close(engine(apart), model(apart))
