"""Names of attributes that forwards may read: all of those that they read by name, or any."""

from functools import partial
from typing import Any

import pytest
from torch import Tensor, nn

from sparsify.surgery.tracing.attribute_reads import attributes_read


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return [self.width, self.config.size, self.helped(x)]

    def helped(self, x: Tensor) -> Any:
        return getattr(self.other, "depth", None)


class ByVariable(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return [getattr(self, name) for name in ("a", "b")]


class ByDict(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return self.__dict__["width"]


def test_names_are_those_in_the_code_that_a_forward_reaches() -> None:
    names = attributes_read(nn.Sequential(Plain(), nn.Linear(2, 2)))
    assert names is not None and {"width", "config", "size", "helped", "other", "depth"} <= names
    assert "height" not in names


class Cell(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x

    def first_state(self) -> Any:
        return self.filled(self.size)

    def filled(self, size: int) -> Any:
        return [self.fill] * size

    def never(self) -> Any:
        return self.unused


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Any:
        return self.cell.first_state()


def test_methods_of_other_modules_are_followed() -> None:
    names = attributes_read(Calling())
    assert names is not None and {"size", "fill"} <= names and "unused" not in names


@pytest.mark.parametrize("cls", [ByVariable, ByDict])
def test_attributes_read_otherwise_may_be_any(cls: type[nn.Module]) -> None:
    assert attributes_read(nn.Sequential(Plain(), cls())) is None


def test_functions_on_objects_and_hooks_may_read_any() -> None:
    for change in (
        lambda module: setattr(module, "step", partial(print, module)),
        lambda module: module.register_forward_hook(print),
    ):
        module = Plain()
        change(module)
        assert attributes_read(module) is None
