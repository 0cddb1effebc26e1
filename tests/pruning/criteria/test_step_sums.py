"""The criterion movement, which adds over the steps of training, against the equation by autograd."""

import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

import sparsify
from sparsify.errors import SparsifyError
from sparsify.surgery.mask_state.masks import masked_weights

PRUNING = {
    "criterion": "movement",
    "scope": "global",
    "sparsity": 0.6,
    "schedule": "linear",
    "begin": "2it",
    "end": 1.0,
}
STEPS = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)]
    model = nn.Sequential(*layers).double()
    sparsify.convert(model)
    return model


def batches(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 1, 5, 5, generator=generator, dtype=torch.float64), torch.arange(6) % 5) for _ in range(count)
    ]


class Equation:
    """S = -sum of dL/dW * W over the steps (Sanh et al. 2020, equation 5), by autograd, beside a training."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, model: nn.Module, loss: Tensor) -> None:
        weights = masked_weights(model)
        parameters = [weight.parameter for weight in weights.values()]
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        for name, parameter, gradient in zip(weights, parameters, gradients, strict=True):
            before = self.sums.get(name, torch.zeros_like(parameter))
            self.sums[name] = before - gradient * parameter.detach()

    def masks(self, sparsity: float) -> dict[str, Tensor]:
        scores = torch.cat([one.flatten() for one in self.sums.values()])
        order = scores.sort(stable=True).indices
        keep = torch.ones(len(scores), dtype=torch.bool)
        keep[order[: int(sparsity * len(scores) + 1e-9)]] = False
        parts = keep.split([one.numel() for one in self.sums.values()])
        return {name: part.view_as(self.sums[name]) for name, part in zip(self.sums, parts, strict=True)}


def train(
    model: nn.Module,
    pruner: sparsify.Pruner,
    data: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    each: Callable[[Tensor], None] = lambda loss: None,
    accumulate: int = 1,
) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for start in range(0, len(data), accumulate):
        loss = torch.stack([cross_entropy(model(x), y) for x, y in data[start : start + accumulate]]).mean()
        each(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # before the pruner, which has to have seen the gradients
        pruner.step()
    return optimizer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("started", [True, False])
def test_scores_are_the_sums_of_the_equation_over_all_steps(accumulate: int, started: bool) -> None:
    model, equation = network(), Equation()
    steps = STEPS // accumulate
    pruner = sparsify.Pruner(model, {**PRUNING, "every": "1it"}, total_steps=steps)
    if started:
        pruner.start()

    def check(loss: Tensor) -> None:
        if pruner.position and pruner.sparsity:
            expected = equation.masks(pruner.sparsity)
            for name, mask in sparsify.get_masks(model).items():
                assert torch.equal(mask, expected[name]), (pruner.position, name)
        equation.add(model, loss)

    train(model, pruner, batches(), each=check, accumulate=accumulate)
    assert pruner.finished
    expected = equation.masks(0.6)
    assert all(torch.equal(mask, expected[name]) for name, mask in sparsify.get_masks(model).items())


def test_the_sums_are_in_the_state_and_a_pruner_that_goes_on_ends_alike() -> None:
    model = network()
    pruner = sparsify.Pruner(model, PRUNING, total_steps=STEPS)
    train(model, pruner, batches())

    part = network()
    before = sparsify.Pruner(part, PRUNING, total_steps=STEPS)
    optimizer = train(part, before, batches()[:5])
    state = before.state_dict()
    assert sum(key.startswith("sums/") for key in state) == 2
    again = sparsify.Pruner(part, PRUNING, total_steps=STEPS)
    again.load_state_dict(state)
    del before
    gc.collect()
    train(part, again, batches()[5:], optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, part.state_dict()[name]), name


def hooks() -> int:
    return len(sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks)


def test_nothing_stays_behind_a_pruner_that_is_finished_or_gone() -> None:
    gc.collect()
    before, model = hooks(), network()
    pruner = sparsify.Pruner(model, PRUNING, total_steps=STEPS)
    assert hooks() == before + 1
    train(model, pruner, batches())
    assert hooks() == before
    again = sparsify.Pruner(model, PRUNING, total_steps=STEPS)
    assert hooks() == before + 1
    del again
    gc.collect()
    assert hooks() == before
    magnitude = sparsify.Pruner(network(), {**PRUNING, "criterion": "magnitude"}, total_steps=STEPS)
    assert hooks() == before and not magnitude.finished


def test_an_optimiser_of_another_model_and_one_that_wraps_another_count_once() -> None:
    from timm.optim.lookahead import Lookahead

    model, other, equation = network(), network(), Equation()
    pruner = sparsify.Pruner(model, {**PRUNING, "begin": "8it"}, total_steps=STEPS)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    def step_other(loss: Tensor) -> None:
        equation.add(model, loss)
        cross_entropy(other(batches()[0][0]), batches()[0][1]).backward()
        others.step()

    others = torch.optim.SGD(other.parameters(), lr=0.1)
    train(model, pruner, batches()[:7], Lookahead(inner), step_other)
    sums = {key.removeprefix("sums/"): value for key, value in pruner.state_dict().items() if key.startswith("sums/")}
    for name, value in equation.sums.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-12, atol=1e-15)


def test_an_update_before_the_first_step_takes_the_batches() -> None:
    model, (data, *_) = network(), batches()
    pruning: dict[str, Any] = {key: PRUNING[key] for key in ("criterion", "scope", "sparsity")}
    pruning["schedule"] = "one_shot"
    with pytest.raises(SparsifyError, match="criterion 'movement' needs data"):
        sparsify.Pruner(model, pruning, total_steps=1).start()
    equation = Equation()
    equation.add(model, cross_entropy(model(data[0]), data[1]))
    sparsify.Pruner(model, pruning, total_steps=1).start([data], cross_entropy)
    expected = equation.masks(0.6)
    assert all(torch.equal(mask, expected[name]) for name, mask in sparsify.get_masks(model).items())


def test_steps_that_no_optimiser_made_are_told_and_without_batches_refused() -> None:
    pruner = sparsify.Pruner(network(), PRUNING, total_steps=STEPS)
    pruner.start([batches()[0]], cross_entropy)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            pruner.step()
    assert any("no optimiser of torch was seen in 3 steps" in str(one.message) for one in told)
    alone = sparsify.Pruner(network(), PRUNING, total_steps=STEPS)
    with warnings.catch_warnings(), pytest.raises(SparsifyError, match="movement"):
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            alone.step()


def test_a_weight_that_a_module_computes_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 2)))
    sparsify.convert(model)
    with pytest.raises(SparsifyError, match=r"movement.*1\.parametrizations"):
        sparsify.Pruner(model, PRUNING, total_steps=STEPS)


def test_in_a_recipe_it_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    from tests.training.run.test_resume import assert_same, small_model

    given = {
        "data": {"name": "digits", "batch_size": 100, "limit": 400},
        "train": {"epochs": 3, "device": "cpu", "checkpoint": {"every": "1it"}, "log_every": 2},
        "prune": {**PRUNING, "every": "2it"},
    }
    whole = sparsify.train(given, model=small_model(), out=tmp_path / "whole", check=False)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 7

    with pytest.raises(sparsify.errors.RunStopped):
        sparsify.train(given, model=small_model(), out=tmp_path / "part", check=False, stop=stop)
    resumed = sparsify.train(None, model=small_model(), out=tmp_path / "part", resume=True)
    assert_same(whole, resumed)
