"""Criteria of the literature against plain implementations of their equations."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.calls import Inputs
from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.table import CRITERIA
from sparsify.pruning.pruner import Pruner
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.criteria.test_criteria import Standardised, loss_fn, network, scores_of, some_batches

Batch = tuple[Tensor, Tensor]


def doubles() -> list[Batch]:
    return [(x.double(), y) for x, y in some_batches()]


def gradients(dense: nn.Module, batch: Batch) -> dict[str, Tensor]:
    dense.zero_grad()
    loss_fn(dense, batch).backward()
    return {name: p.grad.clone() for name, p in dense.named_parameters() if p.grad is not None}


def converted() -> tuple[nn.Module, nn.Module]:
    """Return a dense model and the same with masks, of which one removes a few weights of both."""
    dense, model = network().double(), network().double()
    convert(model)
    for name, weight in masked_weights(model).items():
        weight.mask.view(-1)[::5] = False
        with torch.no_grad():
            dense.get_parameter(name).mul_(weight.mask)
    return dense, model


@pytest.mark.parametrize("name", ["taylor", "fisher", "movement"])
def test_criteria_of_gradients_are_their_equations(name: str) -> None:
    dense, model = converted()
    scores = scores_of(CRITERIA[name], model, batches=doubles(), loss_fn=loss_fn)
    batches = doubles()
    if name == "fisher":
        dense.eval()
        batches = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    found = [gradients(dense, batch) for batch in batches]
    for key, weight in ((key, dense.get_parameter(key).detach()) for key in scores):
        expected = {
            "taylor": sum((weight * g[key]) ** 2 for g in found),
            "fisher": weight**2 / 2 * sum(g[key] ** 2 for g in found),
            "movement": -sum(weight * g[key] for g in found),
        }[name]
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(scores[key], expected, rtol=1e-10, atol=1e-18)


def test_fisher_says_which_batches_it_can_take_apart() -> None:
    _, model = converted()
    x, y = doubles()[0]
    for batch, what in (({"x": x}, "not dict of dict"), ((x, y[:2]), "hold .4, 2. samples")):
        with pytest.raises(SparsifyError, match=what):
            scores_of(CRITERIA["fisher"], model, batches=[batch], loss_fn=loss_fn)


def test_lamp_is_the_equation_of_the_paper() -> None:
    _, model = converted()
    for name, scores in scores_of(CRITERIA["lamp"], model).items():
        weight = masked_weights(model)[name]
        values = (weight.parameter.detach() * weight.mask).numpy().ravel()
        order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
        expected = np.zeros(len(values))
        for place, index in enumerate(order):
            expected[index] = values[index] ** 2 / sum(values[other] ** 2 for other in order[place:])
        np.testing.assert_allclose(scores.numpy().ravel(), expected, rtol=1e-10)


def test_lamp_of_a_layer_of_zeros_is_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    convert(model)
    assert not scores_of(CRITERIA["lamp"], model)["0.weight"].any()


def test_fpgm_is_the_sum_of_distances_between_the_filters_that_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 2))
    convert(model)
    first, second = masked_weights(model).values()
    first.mask[2], first.mask[3, 0] = False, False
    with torch.no_grad():
        first.parameter[2] = torch.nan
    scores = scores_of(CRITERIA["fpgm"], model)
    for weight, filters in ((first, lambda t: t), (second, lambda t: t.transpose(0, 1))):
        values = filters(torch.where(weight.mask, weight.parameter, 0).detach()).flatten(1).double().numpy()
        kept = [i for i in range(len(values)) if np.any(values[i])]
        for i in range(len(values)):
            expected = sum(np.linalg.norm(values[i] - values[j]) for j in kept) if i in kept else 0.0
            found = filters(scores[weight.name])[i].numpy()
            np.testing.assert_allclose(found, np.full(found.shape, expected), rtol=1e-12)


def test_bn_scale_is_the_scale_of_the_norm_that_follows() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2))
    model.append(nn.GroupNorm(2, 6))
    scales = [torch.tensor([0.5, -2.0, 0.0, 1.0]), torch.arange(6.0) - 3]
    with torch.no_grad():
        for index, scale in ((1, scales[0]), (4, scales[1])):
            model[index].weight.copy_(scale)  # type: ignore[operator, union-attr]
    convert(model)
    scores = scores_of(CRITERIA["bn_scale"], model, example_input=torch.randn(1, 3, 6, 6))
    assert torch.equal(scores["0.weight"], scales[0].abs().double()[:, None, None, None].expand(4, 3, 3, 3))
    # [in, out / groups]: the inputs 0 and 1 make the outputs 0, 1 and 2.
    expected = scales[1].abs().double().view(2, 1, 3, 1, 1).expand(2, 2, 3, 2, 2).reshape(4, 3, 2, 2)
    assert torch.equal(scores["3.weight"], expected)


def test_bn_scale_takes_every_kind_of_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    convert(model)
    x = torch.randn(1, 3, 6, 6)
    wanted = scores_of(CRITERIA["bn_scale"], model, example_input=x)
    for example in ((x,), {"input": x}, Inputs(input=x)):
        assert torch.equal(
            scores_of(CRITERIA["bn_scale"], model, example_input=example)["0.weight"], wanted["0.weight"]
        )


def test_bn_scale_refuses_a_layer_without_a_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    convert(model)
    pruning = {"criterion": "bn_scale", "granularity": "unit", "sparsity": 0.5}
    with pytest.raises(SparsifyError, match="no norm with a scale takes the output of 0.weight"):
        Pruner(model, pruning, 1).start([torch.randn(1, 3, 6, 6)])
    with pytest.raises(SparsifyError, match="'bn_scale' needs an input"):
        Pruner(model, pruning, 1).start()


CONVS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (2, 4, 5)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 6)),
    (nn.Conv2d(2, 3, (2, 3), dilation=2, padding="same"), (3, 2, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 2, 5, 5)),
    (nn.Conv1d(3, 2, 4), (2, 3, 9)),
    (nn.Conv3d(2, 2, 2, padding=1), (1, 2, 3, 4, 3)),
]


def squares_met(model: nn.Module, weight: Tensor, place: tuple[int, ...], batches: list[Tensor]) -> float:
    """Return the sum of squares by which the outputs change when the entry at `place` grows by one."""
    with torch.no_grad():
        before = [model(batch) for batch in batches]
        value = weight[place].clone()
        weight[place] += 1
        met = sum(float((model(x) - y).square().sum()) for x, y in zip(batches, before, strict=True))
        weight[place] = value
    return met


@pytest.mark.parametrize(("layer", "shape"), CONVS, ids=lambda one: str(one)[:40])
def test_wanda_multiplies_each_weight_with_the_norm_of_what_it_meets(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The inputs an entry meets are what the outputs of its row change by when the entry grows by one."""
    model = nn.Sequential(layer).double()
    convert(model)
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    scores = scores_of(CRITERIA["wanda"], model, batches=batches, loss_fn=lambda m, batch: m(batch).sum())
    weight = masked_weights(model)["0.weight"].parameter
    for place in [(0,) * weight.dim(), tuple(size - 1 for size in weight.shape)]:
        met, value = squares_met(model, weight, place, batches), float(weight.detach()[place])
        assert float(scores["0.weight"][place]) == pytest.approx(abs(value) * met**0.5, rel=1e-9)


def test_wanda_takes_the_channels_of_a_transposed_convolution() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2))
    convert(model)
    x = torch.randn(2, 4, 5, 5)
    scores = scores_of(CRITERIA["wanda"], model, batches=[x], loss_fn=lambda m, batch: m(batch).sum())["0.weight"]
    norms = x.double().square().sum((0, 2, 3)).sqrt()
    parameter = masked_weights(model)["0.weight"].parameter.detach()
    torch.testing.assert_close(scores, norms.view(4, 1, 1, 1) * parameter.double().abs())


class Reads(nn.Module):
    """Reads the weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.exp(), self.layer.weight)


class Both(Reads):
    """Calls the layer as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layer(x)


class Beside(nn.Module):
    """Reads a weight of its own and calls a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.layer = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x) @ self.own
        return output


def test_wanda_takes_a_layer_that_a_forward_of_its_own_calls() -> None:
    model = nn.Sequential(Beside())
    convert(model, only=["0.layer"])
    x = torch.randn(2, 4)
    scores = scores_of(CRITERIA["wanda"], model, batches=[x], loss_fn=lambda m, batch: m(batch).sum())
    weight = masked_weights(model)["0.layer.weight"].parameter.detach()
    torch.testing.assert_close(scores["0.layer.weight"], weight.abs().double() * x.double().norm(dim=0))


class Product(nn.Module):
    """Multiplies with a matrix of its own, inputs along its rows, as transformers' Conv1D does; or otherwise."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "addmm":
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 3)
        if self.kind == "linear":
            return F.linear(x[..., :3], self.weight)
        if self.kind == "transposed":
            return x[..., :3] @ self.weight.t()
        return torch.matmul(x, self.weight) if self.kind == "matmul" else x @ self.weight


@pytest.mark.parametrize("kind", ["addmm", "linear", "matmul", "operator"])
def test_wanda_sees_the_inputs_of_matrices_that_other_forwards_multiply_with(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Product(kind)).double()
    convert(model)
    batches = [torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(2)]
    scores = scores_of(CRITERIA["wanda"], model, batches=batches, loss_fn=lambda m, batch: m(batch).sum())
    weight = model[1].weight
    for place in [(0, 1), (3, 2)]:
        met, value = squares_met(model, weight, place, batches), float(weight.detach()[place])
        assert float(scores["1.weight"][place]) == pytest.approx(abs(value) * met**0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "shape", "name"),
    [
        (nn.Sequential(Product("transposed")), (2, 4), "0.weight"),
        (nn.Sequential(Both()), (2, 4), "0.layer.weight"),
        (nn.Sequential(Standardised(3, 4, 3)), (1, 3, 6, 6), "0.weight"),
        (nn.Sequential(Reads()), (2, 4), "0.layer.weight"),
        (nn.LSTM(3, 4), (5, 2, 3), "weight_ih_l0"),
    ],
)
def test_wanda_refuses_weights_whose_inputs_no_hook_sees(model: nn.Module, shape: Any, name: str) -> None:
    convert(model)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        output = m(batch)
        return (output if isinstance(output, Tensor) else output[0]).sum()

    with pytest.raises(SparsifyError, match=f"the inputs of {name} cannot be seen: .*'ignore'"):
        scores_of(CRITERIA["wanda"], model, batches=[torch.randn(shape)], loss_fn=loss)


def test_a_pruner_takes_them_by_name() -> None:
    torch.manual_seed(0)
    model = network()
    convert(model)
    pruner = Pruner(model, {"criterion": "wanda", "scope": "filter", "sparsity": 0.5}, 1)
    pruner.start(some_batches(), loss_fn)
    assert all((mask.flatten(1).sum(1) > 0).all() for mask in get_masks(model).values())
