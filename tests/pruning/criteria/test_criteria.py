"""Criteria: their scores against direct formulas, and a model that is afterwards what it was."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.gradients import summed_gradients
from sparsify.pruning.criteria.table import Absolute, Context, magnitude, snip
from sparsify.pruning.criteria.table import random as random_criterion
from sparsify.pruning.pruner import Pruner
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import effective_weight, get_masks, masked_weights
from tests.pruning.examples import small_network

# Weights this small often lose a whole row; the tests of that warning ask for it themselves.
pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")

Batch = tuple[Tensor, Tensor]


def some_batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(4, 3, 6, 6, generator=generator), torch.arange(4)) for _ in range(count)]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(50, 4)
    )


def scores_of(criterion: Any, model: nn.Module, **given: Any) -> dict[str, Tensor]:
    weights = {name: effective_weight(weight) for name, weight in masked_weights(model).items()}
    context = Context(model, get_masks(model), 0, torch.Generator().manual_seed(0), **given)
    answer = criterion(weights, context)
    return {name: s.values.abs() if isinstance(s, Absolute) else s for name, s in answer.items()}


def test_magnitude_is_the_absolute_value_and_copies_nothing() -> None:
    model = small_network()
    weights = {name: effective_weight(weight) for name, weight in masked_weights(model).items()}
    answer = magnitude(weights, Context(model, {}, 0, torch.Generator()))
    for name, scores in answer.items():
        assert isinstance(scores, Absolute) and scores.values.data_ptr() == weights[name].data_ptr()


def test_random_scores_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = scores_of(random_criterion, small_network())
    torch.manual_seed(2)
    again = scores_of(random_criterion, small_network())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len({float(scores.sum()) for scores in first.values()}) == len(first)


def test_snip_is_the_equation_of_the_paper_on_the_dense_model() -> None:
    dense = network().double()
    model = network().double()
    convert(model)
    batches = [(x.double(), y) for x, y in some_batches()]
    total = sum((loss_fn(dense, batch) for batch in batches), torch.zeros(()))
    total.backward()
    scores = scores_of(snip, model, batches=batches, loss_fn=loss_fn)
    for name, parameter in dense.named_parameters():
        if name in scores:
            assert parameter.grad is not None
            expected = (parameter * parameter.grad).abs()
            torch.testing.assert_close(scores[name], expected, rtol=1e-12, atol=1e-18)


def test_a_masked_weight_has_no_influence_and_scores_zero() -> None:
    model = network()
    convert(model)
    get_masks(model)["0.weight"][1] = False
    scores = scores_of(snip, model, batches=some_batches(), loss_fn=loss_fn)
    assert not scores["0.weight"][1].any()
    assert scores["0.weight"][0].all()


class Standardised(nn.Conv2d):
    """A convolution that computes its weight, as weight standardisation does."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), self.bias)


def test_snip_takes_the_gradient_of_the_weight_that_a_module_computes() -> None:
    torch.manual_seed(0)
    module = Standardised(3, 4, 3).double()
    x, raw = torch.randn(2, 3, 6, 6).double(), module.weight.detach().clone()
    centred = raw - raw.mean((1, 2, 3), keepdim=True)
    weight = (centred / centred.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
    F.conv2d(x, weight, module.bias).square().sum().backward()
    model = nn.Sequential(module)
    convert(model)
    scores = scores_of(snip, model, batches=[x, x], loss_fn=lambda m, batch: m(batch).square().sum())
    assert weight.grad is not None
    torch.testing.assert_close(scores["0.weight"], (2 * weight * weight.grad).abs(), rtol=1e-10, atol=1e-14)


def test_frozen_weights_are_scored_too_and_stay_frozen() -> None:
    model = network()
    convert(model)
    model[0].weight.requires_grad_(False)
    scores = scores_of(snip, model, batches=some_batches(), loss_fn=loss_fn)
    assert scores["0.weight"].any()
    assert not model[0].weight.requires_grad


class Counting(nn.Module):
    """Draws random numbers of every kind, and puts a new buffer in the place of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.calls = self.calls + random.random() + float(np.random.rand())
        return F.dropout(input, 0.3, self.training)


def seed_all() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_everything_is_afterwards_what_it_was() -> None:
    model = nn.Sequential(network(), Counting())
    convert(model)
    model[0][1].eval()
    loss_fn(model, some_batches()[0]).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags = [module.training for module in model.modules()]
    seed_all()
    expected = (torch.rand(3).tolist(), random.random(), float(np.random.rand()))
    seed_all()
    scores_of(snip, model, batches=some_batches(), loss_fn=loss_fn)
    assert (torch.rand(3).tolist(), random.random(), float(np.random.rand())) == expected
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == objects
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if p.grad is not None)
    assert [module.training for module in model.modules()] == flags


def test_everything_is_put_back_after_an_error_as_well() -> None:
    model = network().eval()
    convert(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def failing(model: nn.Module, batch: Batch) -> Tensor:
        model(batch[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scores_of(snip, model, batches=some_batches(), loss_fn=failing)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_of_half_precision_weights_are_summed_in_single() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).to(torch.bfloat16)
    convert(model)
    batches = [torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16)] + [torch.ones(1, 2, dtype=torch.bfloat16)] * 3
    sums = summed_gradients(model, ["0.weight"], batches, lambda m, x: m(x).sum())
    assert sums["0.weight"].tolist() == [[4.0, 259.0]]


@pytest.mark.parametrize(
    ("batches", "loss", "message"),
    [
        ([], loss_fn, "there is no batch"),
        (some_batches(1), lambda model, batch: model(batch[0]), "must return the loss of the batch"),
        (some_batches(1), lambda model, batch: 0.5, "must return the loss of the batch"),
        (None, loss_fn, "criterion 'snip' needs data: call pruner.start"),
    ],
)
def test_data_that_give_no_loss_are_one_line(batches: Any, loss: Any, message: str) -> None:
    model = network()
    convert(model)
    with pytest.raises(SparsifyError, match=message):
        Pruner(model, {"criterion": "snip", "sparsity": 0.5}, 0).start(batches, loss)


def test_a_function_of_the_users_own_is_a_criterion() -> None:
    model = small_network()
    seen: list[Context] = []

    def by_index(weights: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        seen.append(context)
        return {name: torch.arange(weight.numel()).view(weight.shape) for name, weight in weights.items()}

    Pruner(model, {"criterion": by_index, "sparsity": 0.5}, 0).start()
    for name, mask in get_masks(model).items():
        assert mask.flatten().nonzero().squeeze(1).tolist() == list(range(mask.numel() // 2, mask.numel())), name
    assert seen[0].model is model and seen[0].step == 0 and seen[0].masks.keys() == get_masks(model).keys()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda weights: {}, "must score '0.weight' with a tensor of shape .8, 3, 3, 3., not NoneType"),
        (lambda weights: {name: weight[:1] for name, weight in weights.items()}, "not one of shape .1, 3, 3, 3."),
        (lambda weights: list(weights.values()), "must return scores by weight name, not list"),
        (lambda weights: {n: w * float("nan") for n, w in weights.items()}, "0.weight: a score is NaN"),
    ],
)
def test_scores_that_do_not_fit_are_one_line(answer: Any, message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        Pruner(small_network(), {"criterion": lambda weights, context: answer(weights), "sparsity": 0.5}, 0).start()
