"""SynFlow: conservation of the flow, the published algorithm written out, and a model that is left as it was."""

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.synflow import synaptic_flow
from sparsify.pruning.mask_update import round_targets
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks
from tests.pruning.criteria.test_criteria import Standardised
from tests.pruning.examples import linear_model

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


class Block(nn.Module):
    """Two convolutions with batch norm, and a shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 5, 3, padding=1), nn.GroupNorm(5, 5)
        self.shortcut = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


def network() -> nn.Sequential:
    """Return a network whose norms, biases and running statistics are all far from their initial values."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Block(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(20),
        nn.Linear(20, 7),
    )  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.randn(tensor.shape).abs() if name.endswith("var") else torch.randn(tensor.shape))
    convert(model)
    return model


def test_every_cut_through_the_network_carries_the_whole_flow() -> None:
    # Tanaka et al. 2020, theorem 2: what parts input from output carries, scores added up, the same as any other cut.
    model = network()
    for name, mask in get_masks(model).items():
        mask.copy_(torch.rand(mask.shape, generator=torch.Generator().manual_seed(len(name))) < 0.6)
    scores = synaptic_flow(model, get_masks(model), torch.zeros(8, 3, 6, 6))
    total = {name: float(score.sum()) for name, score in scores.items()}
    flow = total["0.weight"]
    assert flow > 0
    assert total["7.weight"] == pytest.approx(flow, rel=1e-12)
    assert total["3.first.weight"] == pytest.approx(total["3.second.weight"], rel=1e-12)
    assert total["3.second.weight"] + total["3.shortcut.weight"] == pytest.approx(flow, rel=1e-12)
    assert min(total["3.second.weight"], total["3.shortcut.weight"]) > 0


def test_every_unit_passes_on_what_it_takes_in() -> None:
    # Theorem 1: for a hidden unit the scores of what comes in and of what goes out are equal.
    weights = torch.randn(3, 4), torch.randn(5, 3)
    scores = synaptic_flow(linear_model(*weights), ["0.weight", "1.weight"], torch.zeros(1, 4))
    torch.testing.assert_close(scores["0.weight"].sum(1), scores["1.weight"].sum(0))
    expected = torch.einsum("ij,ki->kij", weights[0].double().abs(), weights[1].double().abs())
    torch.testing.assert_close(scores["0.weight"], expected.sum(0))
    torch.testing.assert_close(scores["1.weight"], expected.sum(2))


def published(weights: list[Tensor], sparsity: float, rounds: int) -> list[Tensor]:
    """Algorithm 1 for a network of linear layers without biases, with autograd and sorting."""
    masks = [torch.ones_like(weight) for weight in weights]
    for k in range(1, rounds + 1):
        positive = [(weight * mask).abs().requires_grad_() for weight, mask in zip(weights, masks, strict=True)]
        output = torch.ones(1, weights[0].shape[1]).double()
        for weight in positive:
            output = output @ weight.T
        output.sum().backward()  # type: ignore[no-untyped-call]
        scores = [weight.detach() * weight.grad for weight in positive]  # type: ignore[operator]
        density = (1 - sparsity) ** (k / rounds)
        flat = torch.cat([score.flatten() for score in scores])
        threshold = flat.sort().values[int((1 - density) * flat.numel()) - 1]
        masks = [(score > threshold).double() for score in scores]
    return masks


@pytest.mark.parametrize("rounds", [1, 3, None])
def test_the_rounds_are_the_published_algorithm(rounds: int | None) -> None:
    torch.manual_seed(1)
    weights = [torch.randn(*shape).double() for shape in ((9, 10), (8, 9), (7, 8))]
    model = linear_model(*weights)
    criterion = "synflow" if rounds is None else {"name": "synflow", "rounds": rounds}
    pruning = {"criterion": criterion, "scope": "global", "sparsity": 0.87}
    Pruner(model, pruning, 0, example_input=torch.zeros(2, 10).double()).start()
    for mask, expected in zip(get_masks(model).values(), published(weights, 0.87, rounds or 100), strict=True):
        assert torch.equal(mask, expected.bool())


def test_with_rounds_no_layer_collapses_where_one_round_empties_one() -> None:
    torch.manual_seed(0)
    shapes = [(30, 60), (2, 30), (30, 2), (5, 30)]
    weights = [torch.randn(*shape) / shape[1] for shape in shapes]
    left = {}
    for criterion in ("synflow", "magnitude"):
        model = linear_model(*weights)
        pruning = {"criterion": criterion, "scope": "global", "sparsity": 0.98}
        Pruner(model, pruning, 0, example_input=torch.zeros(1, 60)).start()
        left[criterion] = [int(mask.sum()) for mask in get_masks(model).values()]
    assert min(left["synflow"]) > 0 == min(left["magnitude"])
    assert sum(left["synflow"]) == sum(left["magnitude"])


def test_targets_of_the_rounds_fall_by_one_factor_and_end_exactly() -> None:
    targets = round_targets(Fraction("0.99"), 4)
    assert [float(1 - target) for target in targets] == pytest.approx([0.1**0.5, 0.1, 0.1**1.5, 0.01])
    assert targets[-1] == Fraction("0.99") and round_targets(Fraction(1), 3) == [1, 1, 1]
    assert round_targets(Fraction("0.3"), 1) == [Fraction("0.3")]


def test_synflow_has_a_hundred_rounds_where_it_happens_at_once_and_one_where_the_schedule_has_many() -> None:
    def rounds(criterion: Any, schedule: str) -> int:
        return parse_pruning({"sparsity": 0.5, "criterion": criterion, "schedule": schedule}).rounds

    assert rounds("synflow", "one_shot") == 100
    assert rounds("synflow", "cubic") == rounds("snip", "one_shot") == 1
    assert rounds({"name": "snip", "rounds": 7}, "one_shot") == 7


def test_random_scores_stay_the_same_from_round_to_round() -> None:
    masks = []
    for rounds in (1, 5):
        model = linear_model(torch.randn(10, 10))
        Pruner(model, {"criterion": {"name": "random", "rounds": rounds}, "sparsity": 0.7}, 0).start()
        masks.append(get_masks(model)["0.weight"])
    assert torch.equal(*masks)


def test_the_weight_that_a_module_computes_is_scored() -> None:
    torch.manual_seed(0)
    module = Standardised(2, 3, 2)
    raw = module.weight.detach().double()
    centred = raw - raw.mean((1, 2, 3), keepdim=True)
    weight = centred / centred.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    model = nn.Sequential(module)
    convert(model)
    scores = synaptic_flow(model, ["0.weight"], torch.zeros(1, 2, 2, 2))
    torch.testing.assert_close(scores["0.weight"], weight.abs(), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    model[3].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    synaptic_flow(model, get_masks(model), torch.zeros(1, 3, 6, 6))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == objects
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_hundred_layers_do_not_overflow_and_a_flow_that_does_is_one_line() -> None:
    deep = linear_model(*[torch.full((30, 30), 1.0)] * 200)
    scores = synaptic_flow(deep, get_masks(deep), torch.zeros(1, 30))
    assert all(bool(score.isfinite().all()) and bool(score.all()) for score in scores.values())
    with pytest.raises(SparsifyError, match="too large for float64"):
        too_deep = linear_model(*[torch.full((30, 30), 1.0)] * 210)
        synaptic_flow(too_deep, get_masks(too_deep), torch.zeros(1, 30))


def test_the_input_comes_from_the_first_batch_where_there_is_no_example() -> None:
    weights = torch.randn(4, 6), torch.randn(3, 4)
    masks = []
    for example, batches in (
        (torch.zeros(1, 6), None),
        ((torch.zeros(1, 6),), None),
        (None, [(torch.randn(5, 6), torch.zeros(5))]),
        (None, iter([torch.randn(5, 6), torch.randn(5, 6)])),
    ):
        model = linear_model(*weights)
        pruner = Pruner(model, {"criterion": "synflow", "sparsity": 0.5, "scope": "global"}, 0, example_input=example)
        pruner.start(batches)
        masks.append(torch.cat([mask.flatten() for mask in get_masks(model).values()]))
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize(
    ("example", "batches", "message"),
    [
        (None, None, "criterion 'synflow' needs an input's shape: give Pruner an example_input"),
        (None, [], "has no tensor as its input, but NoneType"),
        (None, [{"image": 1}], "has no tensor as its input, but dict"),
        (torch.zeros(1, 6, dtype=torch.int64), None, "its inputs must be floats, not torch.int64"),
    ],
)
def test_inputs_that_do_not_do_are_one_line(example: Any, batches: Any, message: str) -> None:
    pruner = Pruner(
        linear_model(torch.randn(4, 6)), {"criterion": "synflow", "sparsity": 0.5}, 0, example_input=example
    )
    with pytest.raises(SparsifyError, match=message):
        pruner.start(batches)
