"""Every public function with wrong arguments: one line that names the argument."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.arguments import takes
from sparsify.errors import SparsifyError
from sparsify.surgery.shrink.cuts import Cuts


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def masked() -> nn.Module:
    model = plain()
    sparsify.convert(model)
    return model


X = torch.zeros(2, 4)
SGD = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
# Arguments with which each function works, or at least gets as far as to look at them.
RIGHT: dict[str, Callable[[], dict[str, Any]]] = {
    "Pruner": lambda: {"model": masked(), "pruning": {"sparsity": 0.5}, "total_steps": 10},
    "Recipe": lambda: {"model": {"name": "cifar:resnet20"}},
    "analyse": lambda: {"model": plain(), "example_input": X},
    "build_model": lambda: {"name": "cifar:resnet20"},
    "compile": lambda: {"source": plain(), "example_input": X},
    "convert": lambda: {"model": plain()},
    "cut_optimizer": lambda: {"optimizer": SGD, "before": plain(), "after": plain(), "cuts": Cuts({})},
    "cut_state": lambda: {"state": {}, "cuts": Cuts({})},
    "fold": lambda: {"model": masked()},
    "get_masks": lambda: {"model": masked()},
    "import_weights": lambda: {"source": "nothing", "out": "nothing"},
    "load": lambda: {"path": "nothing"},
    "load_masks": lambda: {"path": "nothing"},
    "mask_also": lambda: {"model": masked(), "names": []},
    "needs_data": lambda: {"criterion": lambda weights, context: weights},
    "recalibrate_batch_norm": lambda: {"model": masked(), "batches": []},
    "read_recipe": lambda: {"path": "nothing"},
    "remove": lambda: {"model": plain(), "example_input": X, "units": {}},
    "save": lambda: {"model": masked(), "path": "nothing"},
    "set_masks": lambda: {"model": masked(), "masks": {}},
    "shrink": lambda: {"model": masked(), "example_input": X},
    "summary": lambda: {"model": masked()},
    "sync_masks": lambda: {"average": masked(), "live": masked()},
    "to_semi_structured": lambda: {"model": masked()},
    "trace": lambda: {"model": plain()},
    "train": lambda: {"recipe": {"model": "cifar:resnet20"}},
    "verify": lambda: {"model": masked()},
}
# What may be of any type, or is looked at by the model alone; and what is called only later.
FREE = {
    "example_input",
    "args",
    "dynamic_shapes",
    "recipe",
    "data",
    "on_start",
    "on_record",
    "stop",
    "heads",
    "dead",
    "pruning",
}
FREE |= {"batches", "autocast", "channels", "dtype", "cuts of save", "cuts of cut_state", "arguments"}
WRONG = [object(), 1.5, float("nan"), b"x", X, nn.Linear, {1, 2}, True]


def arguments() -> list[tuple[str, str]]:
    found = []
    for name in RIGHT:
        for key, parameter in inspect.signature(getattr(sparsify, name)).parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not variadic and key not in FREE and f"{key} of {name}" not in FREE:
                found.append((name, key))
    return found


def test_every_public_function_is_tried() -> None:
    assert {*RIGHT, "Inputs", "SparsifyError"} == {*sparsify.__all__}
    assert len(arguments()) > 50


@pytest.mark.parametrize(("name", "key"), arguments())
def test_a_wrong_argument_is_named_in_one_line(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, refused = getattr(sparsify, name), 0
    kind = str(inspect.signature(function).parameters[key].annotation)
    for value in WRONG:
        if value is True and ("bool" in kind or key == "criterion") or value is nn.Linear and key == "criterion":
            continue
        with pytest.raises((SparsifyError, TypeError, ValueError)) as caught:
            function(**{**RIGHT[name](), key: value})
        line = str(caught.value)
        if name != "Recipe":  # of which pydantic tells
            assert isinstance(caught.value, SparsifyError | TypeError)
            assert "\n" not in line and key in line and name in line, line
        refused += 1
    assert refused >= 6
    assert not list(tmp_path.iterdir())


def test_the_line_says_what_was_given_and_what_is_taken() -> None:
    with pytest.raises(SparsifyError, match=r"^convert: model is of type int; it takes Module$"):
        sparsify.convert(3)
    with pytest.raises(SparsifyError, match=r"^fold: model is the class Linear; it takes Module$"):
        sparsify.fold(nn.Linear)
    with pytest.raises(SparsifyError, match=r"^Pruner: total_steps is nan; it takes a whole number$"):
        sparsify.Pruner(masked(), {"sparsity": 0.5}, float("nan"))
    with pytest.raises(SparsifyError, match=r"^load: path is None; it takes text or a path$"):
        sparsify.load(None)
    with pytest.raises(SparsifyError, match=r"^convert: ignore is of type list; it takes a list of text$"):
        sparsify.convert(plain(), ignore=[1])  # type: ignore[list-item]


def test_a_pruner_says_what_it_cannot_take() -> None:
    with pytest.raises(SparsifyError, match=r"^Pruner\.load_state_dict: state is .*; it takes a mapping$"):
        sparsify.Pruner(masked(), {"sparsity": 0.5}, 10).load_state_dict([])  # type: ignore[arg-type]
    empty = masked().to("meta")
    with pytest.raises(SparsifyError, match=r"^Pruner: 0\.weight, 2\.weight: on the meta device, without values"):
        sparsify.Pruner(empty, {"sparsity": 0.5}, 10).start()


@pytest.mark.parametrize("mask", [[[1]], torch.ones(4, 4, device="meta"), torch.ones(4, 4).to_sparse()])
def test_a_mask_without_dense_values_is_refused(mask: Any) -> None:
    with pytest.raises(SparsifyError, match=r"^set_masks: 0\.weight: a mask is a dense tensor with values"):
        sparsify.set_masks(masked(), {"0.weight": mask})


def test_a_missing_argument_is_the_usual_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        sparsify.fold()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'modle'"):
        sparsify.fold(plain(), modle=plain())  # type: ignore[call-arg]


def test_functions_stay_what_they_are() -> None:
    @takes(number=int)
    def double(number: int, *, times: int = 2) -> int:
        """Return it."""
        return number * times

    assert double(3) == 6 and double(number=3, times=3) == 9
    assert double.__doc__ == "Return it." and list(inspect.signature(double).parameters) == ["number", "times"]


class _Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("of the model")


def test_a_model_without_weights_is_told() -> None:
    report = sparsify.convert(nn.ReLU())
    assert not sparsify.get_masks(report.model)
    with pytest.raises(SparsifyError, match=r"mask|weight"):
        sparsify.Pruner(nn.ReLU(), {"sparsity": 0.5}, 10)


@pytest.mark.parametrize("use", [sparsify.analyse, sparsify.shrink, sparsify.compile])
def test_an_error_of_the_model_itself_is_not_hidden(use: Callable[..., Any]) -> None:
    model = _Raises()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ZeroDivisionError, SparsifyError), match="of the model"):
        use(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
