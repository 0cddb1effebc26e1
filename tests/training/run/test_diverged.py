"""Numbers that are no longer numbers: the run ends in one line, and no such state takes the place of a sound one."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

import sparsify.training.loop.evaluate as evaluation
from sparsify.errors import Diverged, RunWarning, SparsifyError
from sparsify.training.folder.checkpoint import read_state
from sparsify.training.loop import train_steps
from sparsify.training.loop.diverged import are_finite
from sparsify.training.run.train import train
from sparsify.training.setup.prepare import Prepared


class Poisoned(nn.Linear):
    """A layer whose output, or its gradient alone, is multiplied by `factor` at call number `when` of the training."""

    def __init__(self, when: int, factor: float, *, gradient: bool = False) -> None:
        super().__init__(64, 10)
        self.when, self.factor, self.gradient, self.calls = when, factor, gradient, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if not out.requires_grad:
            return out
        self.calls += 1
        if self.calls == self.when:
            if not self.gradient:
                return out * self.factor
            out.register_hook(lambda gradient: gradient * self.factor)
        return out


def recipe(**settings: Any) -> dict[str, Any]:
    """Return a recipe of 4 epochs of 3 steps, a record after each epoch and a checkpoint after each step."""
    settings = {"epochs": 4, "log_every": 100, "evaluate_every": 4, "device": "cpu", **settings}
    settings.setdefault("checkpoint", {"every": "1it"})
    return {"data": {"name": "digits", "batch_size": 500}, "train": settings}


def go(folder: Path, layer: nn.Module, **settings: Any) -> str:
    with pytest.raises(Diverged) as caught:
        train(recipe(**settings), out=folder, model=nn.Sequential(nn.Flatten(), layer))
    assert isinstance(caught.value, SparsifyError) and caught.value.exit_code == 1
    assert not (folder / "model.safetensors").exists() and not (folder / "checkpoints/best.safetensors").exists()
    return str(caught.value)


def steps_kept(folder: Path) -> list[int]:
    paths = [path for path in (folder / "checkpoints").glob("*.safetensors") if path.stem != "best"]
    states = [read_state(path) for path in paths]
    assert all(bool(value.isfinite().all()) for state in states for value in state["model"].values())
    return sorted(state["step"] for state in states)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_between_two_records_is_not_kept(tmp_path: Path, factor: float) -> None:
    message = go(tmp_path, Poisoned(5, factor))
    assert message.startswith("the loss became nan at step 5 of 12; a lower train.optimizer.lr (now 0.1)")
    assert message.endswith("; the checkpoint of step 4 stays")
    assert steps_kept(tmp_path) == [3, 4]


def test_weights_that_are_no_numbers_are_not_kept_though_the_loss_was_one(tmp_path: Path) -> None:
    message = go(tmp_path, Poisoned(7, math.nan, gradient=True))
    assert message.startswith("the weights are no longer numbers after step 7 of 12; ")
    assert steps_kept(tmp_path) == [5, 6]


@pytest.mark.parametrize("checkpoint", [{"every": "1it"}, {"every": "1h"}])
def test_weights_that_are_no_numbers_after_the_last_step_are_not_saved(
    tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    with pytest.warns(RunWarning, match="step 12: the test loss is nan"):
        message = go(tmp_path, Poisoned(12, math.nan, gradient=True), checkpoint=checkpoint)
    assert message.startswith("the weights are no longer numbers after step 12 of 12; ")
    *_, line = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["test_loss"] is None


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_step_is_the_first_one_and_not_the_one_that_was_recorded(tmp_path: Path, accumulate: int) -> None:
    # 24 batches an epoch
    message = go(tmp_path, Poisoned(7, math.nan), checkpoint={"every": "1h"}, accumulate=accumulate)
    assert f"at step {-(-7 // accumulate)} of " in message and message.endswith("; there is no checkpoint yet")


def test_a_run_that_diverged_goes_on_from_its_last_sound_checkpoint(tmp_path: Path) -> None:
    go(tmp_path / "a", Poisoned(5, math.nan))
    one = train(None, out=tmp_path / "a", resume=True, model=nn.Sequential(nn.Flatten(), Poisoned(0, 0.0)))
    torch.manual_seed(1)
    other = train(recipe(), out=tmp_path / "b", model=nn.Sequential(nn.Flatten(), Poisoned(0, 0.0)))
    assert one.metrics["step"] == other.metrics["step"] == 12
    assert math.isfinite(one.metrics["loss"])


def test_gradients_that_overflow_under_a_scaler_are_left_out_and_end_nothing(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1000)

    def with_scaler(prepared: Prepared, folder: Path) -> None:
        training = prepared.training
        training.accelerator.scaler = scaler
        training.optimizer = AcceleratedOptimizer(training.optimizer.optimizer, scaler=scaler)

    layer = Poisoned(5, math.inf, gradient=True)
    result = train(recipe(), out=tmp_path, model=nn.Sequential(nn.Flatten(), layer), on_start=with_scaler)
    assert scaler.get_scale() <= 2.0**125, "no step overflowed"
    assert math.isfinite(result.metrics["test_loss"]) and are_finite(result.model.parameters())
    assert steps_kept(tmp_path) == [11, 12]


def test_a_test_loss_that_is_no_number_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*args: Any, **kwargs: Any) -> evaluation.Evaluation:
        return evaluation.Evaluation(0.1, math.inf, 300)

    monkeypatch.setattr(train_steps, "evaluate", endless)
    with pytest.warns(RunWarning, match="step 12: the test loss is inf"):
        train(recipe(), out=tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert (tmp_path / "model.safetensors").exists()


def test_frozen_parameters_may_be_infinite() -> None:
    model = nn.Linear(2, 2)
    assert are_finite(model.parameters())
    model.bias.requires_grad_(False).fill_(-math.inf)
    assert are_finite(model.parameters()) and are_finite([])
    model.bias.requires_grad_()
    assert not are_finite(model.parameters())
