"""What units cost and save, scores by it, and sparsities that are a fraction of it."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.units import costs
from sparsify.pruning.units.costs import (
    Term,
    at_prices,
    forward_milliseconds,
    multiply_adds,
    parameters,
    savings,
    total,
)
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.conversion.fold import fold
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.examples import chain, tied

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def kept(count: int, *gone: int) -> Tensor:
    mask = torch.ones(count, dtype=torch.bool)
    mask[list(gone)] = False
    return mask


def test_multiply_adds_by_hand() -> None:
    terms = multiply_adds(*chain())
    assert total(terms, kept(9)) == 3 * 4 + 4 * 5 + 5 * 2
    assert total(terms, kept(9, 0, 3)) == 3 * 2 + 2 * 5 + 5 * 2
    assert total(terms, kept(9, 0, 3, 8)) == 3 * 2 + 2 * 4 + 4 * 2
    # A unit of the first layer saves its row and the column that reads it, one of the second likewise.
    assert savings(terms, kept(9)).tolist() == [3 + 5] * 4 + [4 + 2] * 5
    # With two units of the second layer gone there is less to read; a unit that is gone saves what it would cost.
    assert savings(terms, kept(9, 4, 5)).tolist() == [3 + 3] * 4 + [4 + 2] * 5


def test_parameters_by_hand_count_biases_and_what_reads() -> None:
    model, channels = tied()
    terms = parameters(model, channels)
    assert total(terms, kept(7)) == sum(parameter.numel() for parameter in model.parameters())
    # A unit of the stream: a row of a with its bias, a column of b, a row of c, a column of d.
    assert savings(terms, kept(7)).tolist() == [2 + 1 + 3 + 3 + 2] * 4 + [5 + 5] * 3


def test_a_saving_is_the_difference_that_a_removal_makes() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = [torch.randint(-1, 6, (size,), generator=generator) for size in (7, 5, 9, 4)]
    terms = [
        Term(30, (axes[0], axes[1])),
        Term(11, (axes[1], axes[2], axes[3])),
        Term(5, (axes[0], axes[0])),
        Term(2, ()),
    ]
    for state in (kept(6), kept(6, 2), kept(6, 0, 5)):
        for group in range(6):
            with_group, without = state.clone(), state.clone()
            with_group[group], without[group] = True, False
            expected = float(total(terms, with_group) - total(terms, without))
            assert float(savings(terms, state)[group]) == pytest.approx(expected)


def test_operations_of_one_name_share_its_price() -> None:
    _, channels = chain()
    prices = at_prices(channels, {"0": 6.0, "2": 1.0})
    assert [term.amount for term in prices] == [6.0, 1.0, 0.0]
    twice = type(channels)(**{**vars(channels), "operations": (*channels.operations, channels.operations[1])})
    assert [term.amount for term in at_prices(twice, {"2": 1.0})] == [0.0, 0.5, 0.0, 0.5]


def scored_by(values: dict[str, list[float]]) -> Any:
    def criterion(weights: Any, context: Any) -> dict[str, Tensor]:
        return {name: torch.tensor(values[name])[:, None].expand(w.shape).contiguous() for name, w in weights.items()}

    return criterion


# Per entry; a unit of the first layer has 3 entries and saves 8 multiply-adds, one of the second 4 entries and 6.
SCORES = {"0.weight": [8.0, 1.0, 2.0, 9.0], "2.weight": [3.0, 1.2, 7.0, 8.0, 9.0]}


def pruned(example: Any = None, **settings: Any) -> tuple[nn.Module, Pruner]:
    model, channels = example or chain()
    base = {"criterion": scored_by(SCORES), "scope": "global", "granularity": {"name": "unit", "aggregate": "sum"}}
    pruner = Pruner(model, base | settings, 0, channels=channels)
    pruner.start()
    return model, pruner


def gone(model: nn.Module) -> list[int]:
    masks = get_masks(model)
    return (~torch.cat([masks["0.bias"], masks["2.bias"]])).nonzero().flatten().tolist()


def test_scores_are_divided_by_what_a_unit_saves() -> None:
    sums = [3 * score for score in SCORES["0.weight"]] + [4 * score for score in SCORES["2.weight"]]
    per_flop = [score / 8 for score in sums[:4]] + [score / 6 for score in sums[4:]]
    per_parameter = [score / 9 for score in sums[:4]] + [score / 7 for score in sums[4:]]
    for per, scores in ((None, sums), ("flops", per_flop), ("parameters", per_parameter)):
        criterion = {"function": scored_by(SCORES), "name": "mine"} | ({"per": per} if per else {})
        for count in range(1, 6):
            model, _ = pruned(criterion=criterion, sparsity=round(count / 9 + 1e-3, 4))
            assert gone(model) == sorted(sorted(range(9), key=lambda unit: scores[unit])[:count]), (per, count)


def test_the_compute_aware_order_differs_where_one_layer_costs_more() -> None:
    equal = {"0.weight": [2.0] * 4, "2.weight": [1.4] * 5}
    orders = {}
    for per in ("none", "flops"):
        criterion = {"function": scored_by(equal), "name": "mine"} | ({"per": per} if per != "none" else {})
        model, _ = pruned(criterion=criterion, sparsity=0.12)
        orders[per] = gone(model)
    # Sums of 6 and 5.6; by multiply-adds 6/8 and 5.6/6.
    assert orders == {"none": [4], "flops": [0]}


@pytest.mark.parametrize("of", ["flops", "parameters"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.75, 0.8])
def test_the_fewest_units_go_that_are_enough(of: str, sparsity: float) -> None:
    model, pruner = pruned(of=of, sparsity=sparsity)
    terms = costs.COSTS[of](*chain())
    sums = [3 * score for score in SCORES["0.weight"]] + [4 * score for score in SCORES["2.weight"]]
    order = [unit for unit in sorted(range(9), key=lambda unit: sums[unit]) if unit not in (3, 8)]
    shares = [1 - total(terms, kept(9, *order[:count])) / total(terms, kept(9)) for count in range(8)]
    assert all(a < b for a, b in pairwise(shares))
    enough = next(count for count, share in enumerate(shares) if share >= Fraction(str(sparsity)))
    assert gone(model) == sorted(order[:enough])
    report = pruner.report()
    assert (report.of, report.share) == (of, float(shares[enough]))
    assert report.chosen == report.due == enough


def test_a_cost_that_cannot_be_reached_is_reported() -> None:
    with pytest.warns(UserWarning, match=r"0.857 of the flops is removed, 0.95 was requested: the last unit of"):
        _, pruner = pruned(of="flops", sparsity=0.95)
    report = pruner.report()
    assert (report.chosen, report.due) == (7, 9) and report.share == float(1 - Fraction(3 + 1 + 2, 42))


@pytest.mark.filterwarnings("ignore:the pruning schedule was cut short")
def test_a_ramp_to_a_cost_removes_more_and_more() -> None:
    model, channels = chain()
    settings = {"granularity": "unit", "scope": "global", "of": "flops", "sparsity": 0.6}
    pruner = Pruner(model, settings | {"schedule": "linear", "end": "6it", "every": "1it"}, 6, channels=channels)
    shares = []
    for _ in range(6):
        pruner.step()
        shares.append((pruner.sparsity, pruner.report().share))
    assert [due for due, _ in shares] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert all(due <= share < due + 8 / 42 for due, share in shares)


def test_three_quarters_of_the_multiply_adds_of_a_real_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(80, 5),
    )  # fmt: skip
    convert(model)
    example = torch.randn(1, 3, 6, 6)
    settings = {"granularity": "unit", "scope": "global", "of": "flops", "sparsity": 0.75}
    settings["criterion"] = {"name": "magnitude", "per": "flops"}
    pruner = Pruner(model, settings, 0, example_input=example)
    pruner.start()
    first, second = (int(get_masks(model)[f"{name}.bias"].sum()) for name in "13")
    left = 16 * 27 * first + 4 * 9 * first * second + 20 * second
    whole = 16 * 27 * 12 + 4 * 9 * 12 * 20 + 20 * 20
    assert pruner.report().share == pytest.approx(1 - left / whole)
    # A unit of the first layer is 12 per cent of all.
    assert 0.75 <= pruner.report().share < 0.75 + (16 * 27 + 4 * 9 * 20) / whole


class Slow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2000):
            x = x + 0
        return super().forward(x)


def test_milliseconds_go_to_the_module_that_spends_them() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Slow(4, 5), nn.ReLU()), nn.Linear(5, 2))
    convert(model)
    model.train()
    spent = forward_milliseconds(model, ["0", "1", "1.0", "2"], torch.zeros(1, 3))
    assert spent["1.0"] > 3 * max(spent["0"], spent["1"], spent["2"]) and min(spent.values()) > 0
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    function = lambda weights, _: {name: torch.ones_like(weight) for name, weight in weights.items()}  # noqa: E731
    criterion = {"function": function, "name": "ones", "per": "milliseconds"}
    settings = {"granularity": "unit", "scope": "global", "sparsity": 0.2, "criterion": criterion}
    # One of nine goes: of units with equal scores the one whose removal saves most time.
    pruner = Pruner(
        model, settings | {"criterion": {**criterion, "per": "milliseconds"}}, 0, example_input=torch.zeros(1, 3)
    )
    pruner.start()
    assert [layer.removed for layer in pruner.report().coupled] == [1, 0]
    state = pruner.state_dict()
    again = Pruner(
        model, settings | {"criterion": {**criterion, "per": "milliseconds"}}, 0, example_input=torch.zeros(1, 3)
    )
    again.load_state_dict(state)
    assert torch.equal(again.state_dict()["prices"], state["prices"]) and len(state["prices"]) == 3
    with pytest.raises(SparsifyError, match="'prices' fits no operations of this model"):
        again.load_state_dict(state | {"prices": torch.zeros(2, dtype=torch.float64)})


def test_milliseconds_need_something_to_run() -> None:
    with pytest.raises(SparsifyError, match="milliseconds are measured: give Pruner an example_input"):
        pruned(criterion={"name": "magnitude", "per": "milliseconds"}, sparsity=0.5)


def test_the_analysis_and_the_masks_agree_on_parameters() -> None:
    """The parameters that the terms count as gone are those that the masks of makers and readers cover."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1))
    convert(model)
    channels = analyse(fold(model), torch.zeros(1, 2, 4, 4))
    pruner = Pruner(model, {"granularity": "unit", "sparsity": 0.5}, 0, channels=channels)
    pruner.start()
    left = total(parameters(model, channels), torch.tensor(get_masks(model)["0.bias"].tolist()))
    assert left == 3 * (2 * 9 + 1) + 3 * 3 + 3
    assert masked_weights(model).keys() == {"0.weight", "2.weight"}
