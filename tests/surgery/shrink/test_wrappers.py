"""Models inside torch.compile, data parallelism, averages, checkpoint wrappers: the inner one shrinks, all follows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import sparsify

X = torch.linspace(-1, 1, 24).mul(50).cos().view(4, 6)
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "average": AveragedModel,
}


def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    sparsify.convert(model, ignore=["last"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5}
    sparsify.Pruner(model, pruning, total_steps=1, example_input=X.double()).start()
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    model(X.double()).square().sum().backward()
    optimizer.step()
    output: Tensor = model(X.double())
    return output


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_model_inside_a_wrapper_is_shrunk_and_its_optimiser_and_state_follow(wrapper: str) -> None:
    model = pruned()
    wrapped = WRAPPERS[wrapper](model)
    inner = wrapped.module if wrapper == "average" else model  # an average is a copy
    assert torch.equal(sparsify.analyse(wrapped, X.double()).labels["0.weight"][0], torch.arange(8))
    assert sparsify.summary(wrapped, X.double()).multiply_adds == 4 * (6 * 8 + 8 * 8 + 8 * 2)
    optimizer = torch.optim.SGD(inner.parameters(), 0.01, momentum=0.9)
    step(inner, optimizer)
    report = sparsify.shrink(wrapped, X.double())
    assert type(report.model) is nn.Sequential and report.removed == 8
    state = sparsify.cut_state(wrapped.state_dict(), report.cuts)
    assert next(one for name, one in state.items() if name.endswith("0.weight")).shape == (4, 6)
    sparsify.cut_optimizer(optimizer, wrapped, report.model, report.cuts)
    small = step(report.model, optimizer)
    expected = pruned()
    optimizer = torch.optim.SGD(expected.parameters(), 0.01, momentum=0.9)
    step(expected, optimizer)
    torch.testing.assert_close(small, step(expected, optimizer))


def test_units_of_a_wrapped_model_are_removed_by_the_names_inside() -> None:
    wrapped = nn.DataParallel(pruned())
    assert sparsify.remove(wrapped, X.double(), {"0": [0, 1]}).model[0].out_features <= 6


def test_a_state_with_layers_in_checkpoint_wrappers_is_cut() -> None:
    inner = pruned()
    model = nn.Sequential(checkpoint_wrapper(inner[:3]), inner[3:])
    report = sparsify.shrink(model, X.double())
    state = sparsify.cut_state(sparsify.fold(model).state_dict(), report.cuts)
    report.model.load_state_dict(state)
    assert state["0.0.weight"].shape == (4, 6)
