"""GraSP: Hessian times gradient against second derivatives written out, and what it does to a model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.hessian_gradient import hessian_gradient_products
from sparsify.pruning.criteria.table import Context, grasp
from sparsify.pruning.pruner import Pruner
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import effective_weight, get_masks, masked_weights
from tests.pruning.criteria.test_criteria import Standardised, loss_fn, network, some_batches
from tests.pruning.examples import linear_model

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def scores_of(model: nn.Module, batches: Any, loss: Any, **options: Any) -> dict[str, Tensor]:
    weights = {name: effective_weight(weight) for name, weight in masked_weights(model).items()}
    context = Context(model, get_masks(model), 0, torch.Generator(), batches, loss, options)
    return {name: scores for name, scores in grasp(weights, context).items() if isinstance(scores, Tensor)}


def squared(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum() / 2


def test_two_scalar_layers_by_hand() -> None:
    # L = (abx)^2/2: g = x^2 ab (b, a), H = x^2 ((b^2, 2ab), (2ab, a^2)), so Hg = x^4 ab (b^3 + 2a^2 b, 2ab^2 + a^3)
    # and a score is a weight times that: with a = 2, b = 3, x = 1 that is 6 (27 + 24) = 306 and 6 (36 + 8) = 264.
    model = linear_model(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    scores = scores_of(model, [torch.ones(1, 1)], squared, temperature=1)
    assert [float(score) for score in scores.values()] == [2 * 306, 3 * 264]


def test_two_linear_layers_with_the_full_hessian_over_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*shape, generator=generator).double() for shape in ((3, 4), (2, 3)))
    batches = [torch.randn(5, 4, generator=generator).double() for _ in range(3)]
    targets = torch.tensor([0, 1, 1, 0, 1])
    flat = torch.cat([first.flatten(), second.flatten()])

    def loss(theta: Tensor) -> Tensor:
        outputs = [x @ theta[:12].view(3, 4).T @ theta[12:].view(2, 3).T / 7 for x in batches]
        return torch.stack([F.cross_entropy(output, targets) for output in outputs]).sum()

    hessian: Any = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    gradient: Any = torch.autograd.functional.jacobian(loss, flat)  # type: ignore[no-untyped-call]
    model = linear_model(first, second)
    scores = scores_of(model, batches, lambda model, batch: F.cross_entropy(model(batch), targets), temperature=7)
    found = torch.cat([scores["0.weight"].flatten(), scores["1.weight"].flatten()])
    torch.testing.assert_close(found, flat * (hessian @ gradient), rtol=1e-10, atol=1e-16)


def test_what_is_removed_first_is_what_lets_the_gradient_grow_most() -> None:
    # Equation 8: S(-w) = -w * Hg, half the change of |g|^2 when w goes to zero, to first order; the top S are removed.
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 6, generator=generator).double()
    batch = torch.randn(8, 6, generator=generator).double()

    def gradient_norm(values: Tensor) -> float:
        values = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((batch @ values.T).square().sum() / 2, values)
        return float(gradient.square().sum())

    change = []
    for index in range(6):
        smaller = weight.clone()
        smaller[0, index] *= 1 - 1e-6
        change.append((gradient_norm(smaller) - gradient_norm(weight)) / 2e-6)
    model = linear_model(weight)
    scores = scores_of(model, [batch], squared, temperature=1)["0.weight"][0]
    assert (-scores).tolist() == pytest.approx(change, rel=1e-3)
    Pruner(model, {"criterion": {"name": "grasp", "temperature": 1}, "sparsity": 0.5}, 0).start([batch], squared)
    removed = (~get_masks(model)["0.weight"][0]).nonzero().flatten().tolist()
    assert removed == sorted(sorted(range(6), key=lambda index: -change[index])[:3])


def test_the_temperature_is_200_unless_set() -> None:
    model = network().double()
    convert(model)
    batches = [(x.double(), y) for x, y in some_batches()]
    default = scores_of(model, batches, loss_fn)
    assert all(torch.equal(default[n], s) for n, s in scores_of(model, batches, loss_fn, temperature=200).items())
    assert not any(torch.equal(default[n], s) for n, s in scores_of(model, batches, loss_fn, temperature=1).items())

    def cooled(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]) / 200, batch[1])

    for name, scores in scores_of(model, batches, cooled, temperature=1).items():
        torch.testing.assert_close(scores, default[name], rtol=1e-9, atol=1e-30)


def test_a_masked_weight_has_no_part_in_it() -> None:
    model = network()
    convert(model)
    get_masks(model)["0.weight"][1] = False
    scores = scores_of(model, some_batches(), loss_fn, temperature=1)
    assert not scores["0.weight"][1].any() and scores["0.weight"][0].any()


def test_the_weight_that_a_module_computes_is_scored() -> None:
    torch.manual_seed(0)
    module = Standardised(3, 4, 3).double()
    x, raw = torch.randn(2, 3, 6, 6).double(), module.weight.detach().clone()
    centred = raw - raw.mean((1, 2, 3), keepdim=True)
    weight = (centred / centred.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
    loss = F.conv2d(x, weight, module.bias).pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    (product,) = torch.autograd.grad((gradient * gradient.detach()).sum(), weight)
    model = nn.Sequential(module)
    convert(model)
    scores = scores_of(model, [x], lambda m, batch: m(batch).pow(3).sum(), temperature=1)
    torch.testing.assert_close(scores["0.weight"], weight.detach() * product, rtol=1e-10, atol=1e-10)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(x)[0]
        return output


@pytest.mark.parametrize("module", [Attention(), Recurrent(4, 3)])
def test_operations_whose_fast_kernels_have_no_second_derivative(module: nn.Module) -> None:
    model = nn.Sequential(module)
    convert(model)
    products = hessian_gradient_products(
        model, get_masks(model), [torch.randn(2, 5, 4)], lambda m, x: m(x).square().sum()
    )
    assert products and all(value.isfinite().all() and value.any() for value in products.values())


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    scores = scores_of(linear_model(torch.randn(2, 3)), [torch.ones(1, 3)], lambda m, x: m(x).sum())
    assert not scores["0.weight"].any()


def test_batches_are_drawn_once_and_everything_is_afterwards_what_it_was() -> None:
    model = nn.Sequential(network(), nn.Dropout(0.5))
    convert(model)
    model[0][1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    drawn = []

    def batches() -> Any:
        for index, batch in enumerate(some_batches()):
            drawn.append(index)
            yield batch

    first = scores_of(model, batches(), loss_fn)
    assert drawn == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and not model[0][1].training and not model._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(first[name], again) for name, again in scores_of(model, batches(), loss_fn).items())


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def in_one_kernel(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)[:, None, None]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(y, y, y).square().sum()


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (
            Pair(2, 2),
            lambda m, x: m(x)[0].square().sum(),
            "but that is no tensor: tuple",
        ),
        (nn.Linear(2, 2), in_one_kernel, "an operation that has none: derivative for aten::_scaled_dot_product_flash"),
    ],
)
def test_models_it_cannot_score_are_one_line(model: nn.Module, loss: Any, message: str) -> None:
    model = nn.Sequential(model)
    convert(model)
    with pytest.raises(SparsifyError, match=message):
        scores_of(model, [torch.ones(1, 2)], loss)
    assert not model._forward_hooks
