"""Forwards that look at numbers which no input affects, or take entries by an input's numbers, have kernels."""

import pytest
import torch
from torch import Tensor, nn

import sparsify


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


@pytest.mark.filterwarnings("ignore::sparsify.errors.EngineWarning")
def test_as_many_entries_as_a_mask_has_are_left_to_pytorch() -> None:
    model = Masked().eval()
    engine = sparsify.compile(model, torch.randn(2, 5, 8), threads=1)
    assert "depends on values" in str(engine)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(engine(x), model(x))
