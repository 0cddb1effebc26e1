from typing import Any

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.loop.optimizer import make_accelerator, make_optimizer
from sparsify.training.recipe.settings import OptimizerSettings, TrainSettings


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))


def decays(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_weight_decay_reaches_every_parameter() -> None:
    model = small()
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.5))
    assert decays(optimizer) == {id(p): 0.5 for p in model.parameters()}


def test_bias_and_norm_can_be_spared() -> None:
    model = small()
    optimizer = make_optimizer(model, OptimizerSettings(weight_decay=0.5, weight_decay_exclude="bias_and_norm"))
    assert decays(optimizer) == {id(p): 0.5 if p.ndim > 1 else 0.0 for p in model.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = small()
    model[0].requires_grad_(False)
    assert len(decays(make_optimizer(model, OptimizerSettings()))) == 4


@pytest.mark.parametrize(("nesterov", "expected"), [(None, True), (True, True), (False, False)])
def test_nesterov_is_as_asked(nesterov: bool | None, expected: bool) -> None:
    optimizer = make_optimizer(small(), OptimizerSettings(name="sgd", momentum=0.8, nesterov=nesterov))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"] is expected and optimizer.defaults["momentum"] == 0.8


@pytest.mark.parametrize("arguments", [{"betas": (0.5, 0.6)}, {"eps": 1e-3}])
def test_further_arguments_reach_the_optimizer(arguments: dict[str, Any]) -> None:
    optimizer = make_optimizer(small(), OptimizerSettings(name="adamw", arguments=arguments))
    assert {key: optimizer.defaults[key] for key in arguments} == arguments


def test_an_argument_the_optimizer_refuses_is_one_line() -> None:
    with pytest.raises(SparsifyError, match="adamw refuses its settings.*colour") as caught:
        make_optimizer(small(), OptimizerSettings(name="adamw", arguments={"colour": 1}))
    assert "\n" not in str(caught.value)


def test_nesterov_where_there_is_none_says_how_to_leave_it_out() -> None:
    with pytest.raises(SparsifyError, match="adamw refuses its settings: it has no nesterov; .*nesterov=null"):
        make_optimizer(small(), OptimizerSettings(name="adamw", nesterov=True))


def test_device_and_precision_of_an_earlier_run_are_replaced() -> None:
    assert make_accelerator(TrainSettings(device="cpu", precision="bf16")).mixed_precision == "bf16"
    accelerator = make_accelerator(TrainSettings(device="cpu", precision="no"))
    assert accelerator.mixed_precision == "no" and accelerator.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SparsifyError, match="no cuda device"):
        make_accelerator(TrainSettings(device="cuda"))


def test_a_precision_the_device_cannot_do_is_one_line() -> None:
    with pytest.raises(SparsifyError, match="train.precision: fp16 does not work on cpu"):
        make_accelerator(TrainSettings(device="cpu", precision="fp16"))
