"""verify: no false alarm where chance or state decides, and all the modes that matter."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, verify

X = torch.randn(2, 6)


class Layers(nn.Module):
    """Skips its block in train mode when `draw` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.leave = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.3)
        self.calls = 0
        self.numpy_generator = np.random.default_rng(3)
        self.torch_generator = torch.Generator().manual_seed(3)

    def draw(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        return self.leave(self.drop(x) if self.draw() else x + self.block(x))  # type: ignore[no-any-return]


class ByNumpy(Layers):
    def draw(self) -> bool:
        return self.training and np.random.uniform() > 0.5


class ByPython(Layers):
    def draw(self) -> bool:
        return random.random() > 0.5


class ByOwnNumpy(Layers):
    def draw(self) -> bool:
        return bool(self.numpy_generator.uniform() > 0.5)


class ByOwnTorch(Layers):
    def draw(self) -> bool:
        return bool(torch.rand((), generator=self.torch_generator) > 0.5)


class ByCount(Layers):
    def draw(self) -> bool:
        self.calls += 1
        return self.calls % 2 == 0


@pytest.mark.parametrize("cls", [ByNumpy, ByPython, ByOwnNumpy, ByOwnTorch, ByCount])
@pytest.mark.parametrize("seed", range(4))
def test_chance_and_state_are_the_same_for_both(cls: type[Layers], seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    model = cls()
    convert(model)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    report = verify(model, X)
    assert report.ok and report.identical_eval and report.identical_train, str(report)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert (
        model.calls == 0 and model.numpy_generator.bit_generator.state == np.random.default_rng(3).bit_generator.state
    )


def test_what_no_seed_repeats_is_not_compared() -> None:
    calls = itertools.count()

    class Counting(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + next(calls)

    model = Counting()
    convert(model)
    report = verify(model, X)
    assert report.ok and report.identical_eval is None and report.identical_train is None
    assert "eval mode was not compared: the model does not repeat its own bits" in report.notes


@pytest.mark.parametrize(
    ("when", "mode"),
    [
        (lambda m: torch.is_grad_enabled() and not m.training, "eval mode with gradients"),
        (lambda m: not torch.is_grad_enabled() and m.training, "train mode without gradients"),
        (lambda m: torch.is_autocast_enabled("cpu") and not m.training, "eval mode under autocast"),
        (lambda m: torch.is_autocast_enabled("cpu") and m.training, "train mode under autocast"),
    ],
)
def test_a_difference_in_one_mode_is_found(when: Any, mode: str) -> None:
    class Otherwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + float(type(self.layer) is not nn.Linear and when(self))  # type: ignore[no-any-return]

    model = Otherwise()
    convert(model)
    report = verify(model, X)
    assert report.identical_eval and report.identical_train
    assert [name for name, same in report.modes.items() if same is False] == [mode]
    assert report.problems == [f"the outputs in {mode} differ from the model without masks"]


def test_arguments_are_left_out_as_well() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            if scale is not None:
                return self.one(x) * scale  # type: ignore[no-any-return]
            return self.other(x) + float(type(self.other) is not nn.Linear)  # type: ignore[no-any-return]

    model = Optional()
    convert(model)
    report = verify(model, (X,), {"scale": torch.ones(6)})
    assert report.live == ["one.weight", "other.weight"] and not report.unused
    assert report.modes["eval mode, optional arguments left out"] is False
    assert report.identical_eval


def test_a_mode_that_cannot_run_is_not_compared() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            if self.training or torch.is_autocast_enabled("cpu"):
                raise ValueError("targets are needed")
            return self.layer(x)  # type: ignore[no-any-return]

    model = Wide()
    convert(model)
    report = verify(model, X)
    assert report.ok and report.identical_train is None and report.modes["eval mode under autocast"] is None
    assert "train mode was not checked: ValueError: targets are needed" in report.notes


class Selecting(nn.Module):
    """Selects by what a layer returns, where no gradient flows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.region, self.head = how, nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                found = self.region(x)
            return self.head(found)  # type: ignore[no-any-return]
        found = self.region(x)
        if self.how == "argmax":
            return self.head(F.one_hot(found.argmax(1), 4).float())  # type: ignore[no-any-return]
        if self.how == "nonzero":
            return self.head(torch.ones(int(found.gt(-9).nonzero().shape[0]), 4))  # type: ignore[no-any-return]
        return self.head(found.detach().topk(4, 1).values)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["no_grad", "argmax", "nonzero", "topk"])
def test_a_weight_that_no_gradient_reaches_is_used(how: str) -> None:
    model = Selecting(how)
    convert(model)
    report = verify(model, X)
    assert report.ok and report.without_gradient == ["region.weight"] and not report.unused, str(report)
    assert report.live == ["head.weight"] and "1 used without a gradient" in str(report)
    assert "used without a gradient: region.weight" in report.notes


def test_a_weight_that_is_masked_and_not_used_is_unused() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.spare = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor, both: bool = False) -> Tensor:
            y = F.linear(x, self.weight)
            return F.linear(y, self.spare) if both else y

    model = Spare()
    convert(model)
    report = verify(model, X)
    assert report.unused == ["spare"] and not report.without_gradient


def test_a_model_without_masks_is_said_to_be_one() -> None:
    report = verify(nn.Sequential(nn.BatchNorm1d(6)), X)
    assert report.ok and str(report).endswith("warning: no weight is masked") and "no weight is masked" in report.notes


def test_products_without_a_mask_are_named() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(9)))
    convert(model, ignore=[f"{i}" for i in range(8)])
    report = verify(model, X)
    assert report.unmasked == [f"{i}.weight" for i in range(8)]
    listed = ", ".join(f"{i}.weight" for i in range(6))
    assert f"used by products without a mask: {listed} and 2 more" in report.notes


def test_a_forward_that_writes_to_its_parameters_leaves_the_model_as_it_was() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(6, 6), nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.data.mul_(0.5)
            return self.layer(x) * self.scale  # type: ignore[no-any-return]

    model = Clamped()
    convert(model)
    assert verify(model, X).ok and model.scale.item() == 3.0


def test_arguments_that_the_example_never_gives_are_named() -> None:
    class Optional(Layers):
        def forward(self, x: Tensor, scale: float = 1.0, *rest: Any, bias: Tensor | None = None, **more: Any) -> Tensor:
            return super().forward(x) * scale + (0 if bias is None else bias)

    model = Optional()
    convert(model)
    line = "not compared with arguments that the example leaves out: "
    assert line + "scale, bias" in verify(model, X).notes
    assert line + "bias" in verify(model, (X, 2.0)).notes
    assert not any(note.startswith(line) for note in verify(model, (X, 2.0), {"bias": torch.zeros(())}).notes)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_device_and_dtype_change_nothing(device: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    convert(model)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            report = verify(model, X)
    finally:
        torch.set_default_dtype(before)
    assert report.ok, str(report)


def test_outputs_of_a_generator_are_compared() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

        def forward(self, x: Tensor) -> Any:
            for layer in self.layers:
                x = layer(x)
                yield x

    model = Steps()
    convert(model)
    report = verify(model, X)
    assert report.ok and not report.unused, str(report)
