"""Every function that takes an example takes any call: positional, by keyword, both, and one dict or tuple."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.calls import inputs_of, run
from sparsify.errors import SparsifyError


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

    def layers(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class ByKeyword(Layers):
    def forward(self, *, x: Tensor, mask: Tensor) -> Tensor:
        return self.layers(x * mask)


class ByPosition(Layers):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layers(x * mask)


class OneDict(Layers):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["x"] * batch["mask"])


class OneTuple(Layers):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.layers(pair[0] * pair[1])


class OneList(Layers):
    def forward(self, pair: list[Tensor]) -> Tensor:
        assert isinstance(pair, list)
        return self.layers(pair[0] * pair[1])


X, MASK = torch.randn(3, 8), torch.ones(3, 8)
BATCH = {"x": X, "mask": MASK}
# model, an example, and one that does not fit
CALLS: dict[str, tuple[type[Layers], Any, Any]] = {
    "a dict": (ByKeyword, BATCH, X),
    "a dict for positions": (ByPosition, BATCH, {"x": X}),
    "a tuple": (ByPosition, (X, MASK), [X, MASK]),
    "both": (ByPosition, sparsify.Inputs(X, mask=MASK), X),
    "one dict": (OneDict, sparsify.Inputs(BATCH), BATCH),
    "one tuple": (OneTuple, sparsify.Inputs((X, MASK)), (X, MASK)),
    "one list": (OneList, [X, MASK], (X, MASK)),
}


def pruner(**settings: Any) -> Callable[[nn.Module, Any], Any]:
    def prune(model: nn.Module, example: Any) -> Any:
        pruning = {"sparsity": 0.5, "schedule": "one_shot", **settings}
        one = sparsify.Pruner(model, pruning, 1, example_input=example)
        one.start()
        return one

    return prune


TAKERS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "verify": sparsify.verify,
    "analyse": sparsify.analyse,
    "shrink": sparsify.shrink,
    "compile": lambda model, example: sparsify.compile(model, example, tune=False, threads=1),
    "units": pruner(granularity="unit", scope="global"),
    "synflow": pruner(scope="filter", criterion="synflow"),
    "milliseconds": pruner(granularity="unit", scope="global", criterion={"name": "magnitude", "per": "milliseconds"}),
}


def converted(kind: type[Layers]) -> Layers:
    torch.manual_seed(0)
    model = kind().eval()
    sparsify.convert(model)
    return model


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("taker", TAKERS)
def test_an_example_of_any_kind_is_taken(taker: str, call: str) -> None:
    kind, example, _ = CALLS[call]
    model = converted(kind)
    found = TAKERS[taker](model, example)
    inputs = inputs_of(example, "test")
    if taker == "verify":
        assert found.ok and len(found.live) == 2 and found.identical_train
    elif taker == "compile":
        with torch.no_grad():
            wanted = run(model, inputs)
        assert (run(found, inputs) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert found.strategies and all(one.kind != "torch" for one in found.strategies.values())
    elif taker == "shrink":
        assert found.difference is not None and found.groups > 0
    elif taker == "analyse":
        assert found.groups > 0
    else:
        assert not sparsify.get_masks(model)["a.weight"].all()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("taker", TAKERS)
def test_an_example_that_does_not_fit_is_one_line_with_the_right_call(taker: str, call: str) -> None:
    kind, _, wrong = CALLS[call]
    with pytest.raises(
        SparsifyError, match=r"^[^\n]* does not fit forward\([^\n]*(Inputs|tuple\(example_input\))[^\n]*$"
    ):
        TAKERS[taker](converted(kind), wrong)


NO_TENSORS = [np.zeros((3, 8), np.float32), [[1.0] * 8], "text", 3, {"x": None, "mask": None}, (None, 1), object()]


@pytest.mark.parametrize("wrong", NO_TENSORS, ids=lambda wrong: type(wrong).__name__)
@pytest.mark.parametrize("taker", ["verify", "analyse", "shrink", "compile", "units"])
def test_what_holds_no_tensor_is_one_line_with_the_right_call(taker: str, wrong: Any) -> None:
    kind: Any = ByPosition if isinstance(wrong, (dict, tuple)) else OneDict
    with pytest.raises(
        SparsifyError,
        match=r"^\w+: the forward fails on the example_input, which holds no tensor \(.*\): .*; give a tensor",
    ):
        TAKERS[taker](converted(kind), wrong)


class Asked(Layers):
    """Takes numbers, and fails for reasons of its own."""

    def forward(self, rows: int = 1, *, fails: Tensor | None = None) -> Tensor:
        if fails is not None:
            raise ValueError("of its own")
        return self.layers(torch.ones(rows, 8))


def test_a_model_may_take_numbers_and_fail_on_tensors() -> None:
    assert sparsify.verify(converted(Asked), 3).ok and sparsify.analyse(converted(Asked), 3).operations
    with pytest.raises(ValueError, match="of its own"):
        sparsify.analyse(converted(Asked), {"fails": torch.ones(1)})


@pytest.mark.parametrize("call", CALLS)
def test_a_file_of_an_engine_or_a_program_takes_it_as_well(call: str, tmp_path: Path) -> None:
    kind, example, wrong = CALLS[call]
    model = converted(kind)
    sparsify.save(model, tmp_path / "a", format="pt2", example_input=example)
    with pytest.raises(SparsifyError, match="^save: the example_input does not fit"):
        sparsify.save(model, tmp_path / "b", format="pt2", example_input=wrong)
    inputs = inputs_of(example, "test")
    with torch.no_grad():
        assert torch.allclose(run(torch.export.load(tmp_path / "a").module(), inputs), run(model, inputs), atol=1e-6)
