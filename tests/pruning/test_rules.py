"""Rules: weights with settings of their own, under one pruner, one plan and one report."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cli.view.report import sparsity_lines
from sparsify.errors import SparsifyError
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.examples import batches, floor_of, loss_fn, lowest, small_network

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
SIZES = {"0.weight": 216, "3.weight": 16, "4.weight": 48, "7.weight": 750}


def pruned(pruning: dict[str, Any], **given: Any) -> tuple[nn.Module, Pruner]:
    model = small_network()
    pruner = Pruner(model, pruning, 1, **given)
    pruner.start()
    return model, pruner


def gone(model: nn.Module) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in get_masks(model).items() if (~mask).any()}


def test_only_leaves_all_other_weights_dense() -> None:
    model, pruner = pruned({"sparsity": 0.5, "only": ["Linear", "0"], "ignore": "re:0"})
    assert gone(model) == {"7.weight": 375}
    assert [layer.name for layer in pruner.report().layers] == ["7.weight"]
    with pytest.raises(SparsifyError, match="'only' and 'ignore' leave none of the 4 masked weights"):
        pruned({"sparsity": 0.5, "only": "Linear", "ignore": "7"})


def test_the_first_rule_that_matches_counts_and_the_rest_is_as_usual() -> None:
    rules = [{"match": "last", "sparsity": "0.9"}, {"match": ["Linear", "3"], "ignore": True}]
    model, pruner = pruned({"sparsity": 0.25, "scope": "global", "rules": rules})
    values = {name: weight.parameter.detach().abs().numpy() for name, weight in masked_weights(model).items()}
    expected = {"7.weight": lowest(values["7.weight"], floor_of("0.9", 750))}
    together = torch.cat([torch.tensor(values[name]).flatten() for name in ("0.weight", "4.weight")]).numpy()
    rest = lowest(together, floor_of("0.25", 264))
    expected |= {"0.weight": rest[:216].reshape(8, 3, 3, 3), "4.weight": rest[216:].reshape(4, 3, 2, 2)}
    for name, mask in get_masks(model).items():
        assert torch.equal(mask, torch.from_numpy(expected[name])) if name in expected else mask.all()
    report = pruner.report()
    assert (report.chosen, report.due, report.choices) == (675 + 66, 675 + 66, 750 + 264)
    assert [match for match, _ in report.parts] == [("last",), ()]
    assert sparsity_lines(report)[2] == "  last: 675 of 750 entries removed, 90.0 % of the weights, 90.0 % requested"
    assert pruner.sparsity == pytest.approx((0.9 * 750 + 0.25 * 264) / 1014)


def test_a_rule_has_a_granularity_a_criterion_and_an_amount_of_its_own() -> None:
    rules = [
        {"match": "Conv2d", "granularity": "unit", "amount": 1, "criterion": "random"},
        {"match": "7", "granularity": "2:4"},
    ]
    model, pruner = pruned({"sparsity": 0.5, "rules": rules})
    masks = get_masks(model)
    for name in ("0.weight", "3.weight"):
        assert (~masks[name].flatten(1).any(1)).sum() == 1
    assert (masks["7.weight"][:, :148].reshape(-1, 4).sum(1) == 2).all() and gone(model)["4.weight"] == 24
    assert [report.of for _, report in pruner.report().parts] == ["units", "entries", "entries"]


def test_units_that_span_layers_go_by_the_rule_of_all_that_make_them() -> None:
    rules = [{"match": "0", "granularity": "unit"}]
    _, pruner = pruned({"sparsity": 0.5, "rules": rules}, example_input=torch.zeros(1, 3, 6, 6))
    report = pruner.report()
    assert report.chosen == report.due > 0


class Joined(nn.Module):
    """Two layers whose outputs one norm takes together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.out = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        return output


def test_a_norm_of_units_of_two_rules_is_an_error() -> None:
    model = Joined()
    convert(model)
    rules = [{"match": name, "granularity": "unit", "amount": 1} for name in "ab"]
    with pytest.raises(SparsifyError, match="norm.weight is tied to weights of two parts, the rule for a and"):
        Pruner(model, {"sparsity": 0.5, "rules": rules}, 1, example_input=torch.zeros(1, 3, 4, 4))
    together = [{"match": ["a", "b"], "granularity": "unit", "amount": 1}]
    pruner = Pruner(model, {"sparsity": 0.5, "rules": together}, 1, example_input=torch.zeros(1, 3, 4, 4))
    pruner.start()
    assert pruner.report().parts[0][1].chosen == 2


UNION: dict[str, Any] = {
    "sparsity": 0.4,
    "schedule": {"name": "cyclic", "cycles": 3},
    "end": "18it",
    "every": "2it",
    "after_cycles": "union",
    "rules": [
        {"match": "7", "sparsity": 0.8, "criterion": "snip", "scope": "filter"},
        {"match": "0", "granularity": "unit", "criterion": "random"},
    ],
}


def walk(model: nn.Module, pruner: Pruner, steps: range) -> list[dict[str, Tensor]]:
    found = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for weight in masked_weights(model).values():
                weight.parameter.add_(torch.randn(weight.parameter.shape, generator=generator), alpha=0.1)
        pruner.step()
        found.append({name: mask.clone() for name, mask in get_masks(model).items()})
    return found


def test_cycles_and_union_work_with_rules_and_a_resumed_run_is_the_same() -> None:
    model = small_network()
    pruner = Pruner(model, UNION, 20)
    pruner.start(batches(), loss_fn)
    found = walk(model, pruner, range(9))
    state, values = pruner.state_dict(), {key: value.clone() for key, value in model.state_dict().items()}
    found += walk(model, pruner, range(9, 20))
    report = pruner.report()
    assert pruner.finished and report.chosen == report.due > 0
    ends = [found[step - 1] for step in (6, 12)]
    union = {name: ends[0][name] | ends[1][name] for name in ends[0]}
    assert all(torch.equal(union[name] & found[-1][name], found[-1][name]) for name in union)
    assert all(one.chosen == one.due for _, one in report.parts)
    again = small_network()
    resumed = Pruner(again, UNION, 20)
    resumed.load_state_dict(state)
    again.load_state_dict(values)
    resumed.start(batches(), loss_fn)
    for one, other in zip(found[9:], walk(again, resumed, range(9, 20)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(SparsifyError, match="saved with rules"):
        Pruner(small_network(), {**UNION, "rules": UNION["rules"][:1]}, 20).load_state_dict(state)


def test_a_rule_without_data_is_told_before_the_first_step() -> None:
    with pytest.raises(SparsifyError, match="'snip' needs data"):
        Pruner(small_network(), UNION, 20).start()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "7"}], "pruning.rules.0: says nothing but 'match'"),
        ([{"match": "7", "sparsty": 0.1}], "pruning.rules.0.sparsty: unknown key; did you mean 'sparsity'?"),
        ([{"sparsity": 0.1}], "pruning.rules.0.match: missing key"),
        ([{"match": "7", "ignore": True, "sparsity": 0.5}], "'ignore: true' leaves them dense, so 'sparsity'"),
        ([{"match": "7", "sparsity": 0.5, "amount": 2}], r"rules.0 (7): takes either 'sparsity'"),
        ([{"match": "7", "granularity": "unit", "scope": "filter"}], "rules.0 (7): granularity 'unit' with scope"),
        ([{"match": "7", "criterion": "fpgm"}], "rules.0 (7): criterion 'fpgm' compares units"),
        ([{"match": "7", "sparsity": 0.1}, {"match": "Linear", "sparsity": 0}], "rules.1.match: no weight is left for"),
        ([{"match": "0", "ignore": True}, {"match": "Liner", "amount": 1}], "did you mean 'Linear'?"),
    ],
)
def test_a_wrong_rule_is_one_line(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SparsifyError) as error:
        Pruner(small_network(), {"sparsity": 0.5, "rules": rules}, 1)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rules_do_not_go_with_a_cost_of_the_whole_model() -> None:
    with pytest.raises(SparsifyError, match="'of: flops' looks at the whole model and takes no rules"):
        parse_pruning(
            {
                "sparsity": 0.5,
                "of": "flops",
                "granularity": "unit",
                "scope": "global",
                "rules": [{"match": "0", "amount": 1}],
            }
        )
