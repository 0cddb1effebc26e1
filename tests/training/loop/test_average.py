"""The moving average of the weights in a recipe, against an average kept by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.training.folder.checkpoint import read_state
from sparsify.training.folder.run_folder import LAST
from sparsify.training.loop.average import update_average
from tests.training.run.test_resume import assert_same, go, recipe, small_model, stopped

EMA = {"decay": 0.9, "warmup": False}


class ByHand:
    """Watches a training, and keeps what its average has to be: numbers from the equation, masks from the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, decay_at: Any) -> None:
        self.values: dict[str, Tensor] = {}
        train_steps = sys.modules["sparsify.training.loop.train_steps"]
        real = update_average

        def update(average: Any, model: nn.Module, step: int) -> None:
            real(average, model, step)
            decay = decay_at(step)
            for name, value in model.state_dict().items():
                before = self.values.get(name)
                number = value.is_floating_point() and before is not None
                self.values[name] = before * decay + value.double() * (1 - decay) if number else value.clone().double()

        monkeypatch.setattr(train_steps, "update_average", update)

    def check(self, state: dict[str, Tensor]) -> None:
        assert state.keys() == self.values.keys()
        for name, value in state.items():
            torch.testing.assert_close(value.double(), self.values[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ema", "decay_at"),
    [(EMA, lambda t: 0.9 if t > 1 else 0.0), ({"decay": 0.6}, lambda t: min(0.6, 1 - t ** (-2 / 3)))],
    ids=["plain", "warmup"],
)
def test_the_average_is_that_of_the_equation_and_is_what_is_tested_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: dict[str, Any], decay_at: Any
) -> None:
    by_hand, model = ByHand(monkeypatch, decay_at), small_model()
    given: dict[str, Any] = recipe(ema=ema)
    result = sparsify.train(given, model=model, out=tmp_path / "run", check=False)
    by_hand.check(dict(result.model.state_dict()))
    assert result.model is not model and not torch.equal(result.model[0].weight, model[0].weight)
    masks = sparsify.get_masks(model)
    assert masks and all(torch.equal(mask, masks[name]) for name, mask in sparsify.get_masks(result.model).items())

    saved = sparsify.load(tmp_path / "run" / "model.safetensors", small_model(), fold=True)
    assert torch.equal(saved[0].weight, torch.where(masks["0.weight"], result.model[0].weight, 0))
    assert torch.equal(saved[1].running_mean, result.model[1].running_mean)
    assert result.model[3].moved == model[3].moved > 0  # a buffer that is in no state is the model's
    saved[3].moved.copy_(model[3].moved)
    images = torch.randn(8, 1, 8, 8)
    assert torch.equal(saved.eval()(images), result.model.eval()(images))

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("test_weights") for line in lines] == ["average"] * 4
    assert "of the average of the weights" in str(result)


def test_without_it_nothing_says_average(tmp_path: Path) -> None:
    result = go(tmp_path / "run", max_steps=3)
    assert "test_weights" not in result.metrics and "average" not in str(result)
    assert "average" not in read_state(tmp_path / "run" / LAST)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 7, 12])
def test_a_run_with_an_average_goes_on_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    whole = go(tmp_path / "whole", ema=EMA)
    stopped(tmp_path / "part", steps, ema=EMA)
    assert_same(whole, go(tmp_path / "part", resume=True))


@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
def test_the_average_is_shrunk_with_its_model(tmp_path: Path, criterion: str) -> None:
    given = {
        "model": "cifar:resnet20",
        "data": {"name": "digits", "batch_size": 200, "limit": 400},
        "train": {"epochs": 3, "ema": EMA, "device": "cpu", "optimizer": {"name": "sgd", "lr": 0.05}},
        "prune": {
            "criterion": criterion,
            "schedule": "one_shot",
            "sparsity": 0.5,
            "granularity": "unit",
            "begin": "3it" if criterion == "magnitude" else 0.0,
            "shrink": True,
        },
    }
    result = sparsify.train(given, out=tmp_path / "run")
    assert result.shrunk is not None
    size = sum(parameter.numel() for parameter in result.model.parameters())
    assert size == result.shrunk["parameters"][1] < result.shrunk["parameters"][0]
    loaded, images = sparsify.load(tmp_path / "run" / "model.safetensors"), torch.randn(3, 3, 32, 32)
    assert torch.equal(loaded(images), result.model.eval()(images))
    state = read_state(tmp_path / "run" / LAST)
    assert {name: value.shape for name, value in state["average"].items()} == {
        name: value.shape for name, value in state["model"].items()
    }
    assert any(not torch.equal(state["average"][name], value) for name, value in state["model"].items())


def test_a_run_goes_on_after_its_average_was_shrunk(tmp_path: Path) -> None:
    given = {
        "model": "cifar:resnet20",
        "data": {"name": "digits", "batch_size": 200, "limit": 400},
        "train": {"epochs": 2, "ema": EMA, "device": "cpu", "checkpoint": {"every": "1it"}},
        "prune": {"sparsity": 0.5, "schedule": "one_shot", "begin": "1it", "granularity": "unit", "shrink": True},
    }
    whole = sparsify.train(given, out=tmp_path / "whole")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(sparsify.errors.RunStopped):
        sparsify.train(given, out=tmp_path / "part", stop=stop)
    resumed = sparsify.train(None, out=tmp_path / "part", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.metrics["test_loss"] == whole.metrics["test_loss"]
