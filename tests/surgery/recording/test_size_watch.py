"""A forward that asks in Python how large its input is may do something else for other sizes: the report says so."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import shrink

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Asking(nn.Module):
    """Does something else where `ask` is true."""

    def __init__(self, ask: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.ask = ask
        self.a, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        assert x.shape[1] == self.a.out_channels
        return self.other(x) if self.ask(x) else x


def inside(part: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 1), part, nn.Conv2d(4, 2, 1)).eval()


ASKING: dict[str, Callable[[Tensor], object]] = {
    "larger": lambda x: x.shape[-1] > 64,
    "batch": lambda x: x.size(0) >= 100,
    "rest": lambda x: x.shape[3] % 64 == 63,
    "truth": lambda x: x.shape[-1] // 64,
    "tuple": lambda x: x.shape[-2:] == (96, 96),
    "len": lambda x: len(x) > 100,
    "numel": lambda x: x.numel() > 1e6,
    "product": lambda x: x.shape[2] * x.shape[3] > 5000,
    "ratio": lambda x: x.size(2) / x.size(1) > 50.5,
    "half": lambda x: x.shape[2] * 0.5 > 32,
    "power": lambda x: x.shape[2] ** 0.5 > 9,
    "ceil": lambda x: math.ceil(x.size(2) / 7) > 12,
    "floor": lambda x: math.floor(x.size(2) / 2.0) > 40,
    "root": lambda x: math.sqrt(x.size(2)) > 9,
    "int": lambda x: int(x.shape[2]) > 64,
    "negative": lambda x: -x.shape[2] < -64,
    "numpy": lambda x: np.prod(x.shape) > 1e6,
    "key": lambda x: {64: 1}.get(x.shape[2] * 0 + 64, 0) - 1 or max(x.shape[2], 64) > 64,
    "any": lambda x: any(size > 64 for size in x.shape[2:]),
}


@pytest.mark.parametrize("name", ASKING)
def test_the_modules_that_compare_sizes_of_their_input_are_named(name: str) -> None:
    report = shrink(inside(Asking(ASKING[name])), X)
    assert report.bound == ("1",)
    assert "  bound to these sizes: 1 may behave differently for others" in str(report).splitlines()


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x.shape[1] > 64,
        lambda x: x.view(x.shape[0], x.shape[1], x.shape[2] * x.shape[3] // 2, 2).sum() is None,
        lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2)) is None,
        lambda x: F.adaptive_avg_pool2d(x, 1) is None,
        lambda x: sum(x[:, :, i] for i in range(x.shape[2])) is None,
        lambda x: x.dim() > 4,
    ],
)
def test_sizes_that_decide_nothing_bind_nothing(way: Callable[[Tensor], object]) -> None:
    report = shrink(inside(Asking(way)), X)
    assert report.bound == () and "bound to" not in str(report)
    assert len(report.proved) == 2


def test_an_example_of_the_other_way_is_among_the_sizes() -> None:
    model = inside(Asking(ASKING["larger"]))
    report = shrink(model, X, dead="zeros", examples=[torch.randn(1, 3, 70, 70)])
    assert report.bound == ("1",) and "example 2" in report.proved


class Table(nn.Module):
    """Takes no longer inputs than its table of positions is, and something else for short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.randn(1, 12, 8))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 4:
            return self.b(x.new_ones(*x.shape[:2], 8))
        y: Tensor = self.b(self.a(x) + self.table[:, : x.shape[1]])
        return y


def test_a_smaller_input_is_tried_where_a_larger_one_is_refused() -> None:
    report = shrink(Table().eval(), torch.randn(2, 12, 5))
    assert "an input of shape (2, 6, 5)" in report.proved and report.bound == ("the model",)


def test_a_forward_that_takes_no_numbers_but_plain_ones_may_ask_for_anything() -> None:
    def plain(x: Tensor) -> bool:
        if type(x.shape[2]) is not int:
            raise TypeError("not an int")
        return False

    report = shrink(inside(Asking(plain)), X)
    assert report.bound == ("the model",) and len(report.proved) == 2


def test_nothing_is_said_without_a_proof() -> None:
    assert shrink(inside(Asking(ASKING["larger"])), X, verify=False).bound == ()


def test_percentages_say_of_what() -> None:
    text = str(shrink(inside(Asking(ASKING["larger"])), X))
    assert "100.0 % left" in next(line for line in text.splitlines() if "parameters" in line)


class Listed(nn.Module):
    """Finds out in a list, by the size of its input, what to do."""

    def __init__(self, table: object) -> None:
        super().__init__()
        self.table = table
        self.a, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.other(x) if self.table[x.shape[2] // 2] else x  # type: ignore[index]


@pytest.mark.parametrize("table", [[False] * 12 + [True], (False,) * 12 + (True,)])
def test_a_list_that_a_size_indexes_decides_by_the_size(table: object) -> None:
    model = inside(Listed(table))
    report = shrink(model, X)
    assert report.bound == ("1",)
    assert type(model[1].table) is type(table) and report.model[1].table == table


def test_a_list_indexed_by_plain_numbers_decides_nothing() -> None:
    class First(Listed):
        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.a(x)) if self.table[0] else self.a(x)  # type: ignore[index, no-any-return]

    assert shrink(inside(First([True])), X).bound == ()
