"""Units as groups of channels: which there are, how they are scored and masked, and that one of a layer stays."""

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.report import SparsityWarning
from sparsify.pruning.selection.prunable_weights import pruned_weights
from sparsify.pruning.units.groups import Groups, learn_groups
from sparsify.surgery.channels.analyse import Channels
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, masked_parameters, masked_weights
from sparsify.surgery.shrink.shrink import shrink
from tests.pruning.examples import chain, tied
from tests.surgery.analysis.test_heads import Attention

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def groups_of(model: nn.Module, channels: Channels, ignore: tuple[str, ...] = ()) -> Groups:
    return learn_groups(model, channels, pruned_weights(model, ignore))


def pruned(example: tuple[nn.Module, Channels], **settings: Any) -> tuple[nn.Module, Pruner]:
    model, channels = example
    pruner = Pruner(model, {"granularity": "unit", "sparsity": 0.5, **settings}, 0, channels=channels)
    pruner.start()
    return model, pruner


def rows(mask: Tensor, dimension: int = 0) -> list[bool]:
    other = tuple(d for d in range(mask.dim()) if d != dimension)
    every, some = (mask.all(other), mask.any(other)) if other else (mask, mask)
    assert torch.equal(every, some), "a unit is masked as a whole"
    return some.tolist()


def lowest_means(weights: list[Tensor], count: int) -> list[int]:
    """Return the `count` rows whose mean |w|, averaged over `weights`, is lowest."""
    means = sum(weight.detach().abs().double().mean(1) for weight in weights) / len(weights)
    assert isinstance(means, Tensor)
    return sorted(means.argsort(stable=True)[:count].tolist())


def test_groups_and_layers_of_a_chain() -> None:
    groups = groups_of(*chain())
    assert [(one.name, one.dimension) for one in groups.produced] == [
        (n, 0) for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    assert [one.name for one in groups.scored] == ["0.weight", "2.weight"]
    assert [(layer.weights, layer.groups.tolist(), layer.spare) for layer in groups.layers] == [
        (("0.weight",), [0, 1, 2, 3], False),
        (("2.weight",), [4, 5, 6, 7, 8], False),
    ]


def test_tied_weights_are_one_layer() -> None:
    groups = groups_of(*tied())
    assert [(layer.weights, layer.groups.tolist()) for layer in groups.layers] == [
        (("a.weight", "c.weight"), [0, 1, 2, 3]),
        (("b.weight",), [4, 5, 6]),
    ]
    assert [tuple(shape) for shape in groups.layers[0].shapes] == [(5, 2), (5, 3)]


def test_weights_that_share_only_some_groups_are_one_layer_too() -> None:
    # As where two convolutions are concatenated and a depthwise one works on both.
    model, channels = chain()
    channels.labels["2.weight"][0] = torch.tensor([4, 5, 6, 7, 3])
    channels.labels["2.bias"][0] = channels.labels["2.weight"][0]
    # Nothing makes the last group any more.
    assert [layer.groups.tolist() for layer in groups_of(model, channels).layers] == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_unit_is_pruned_in_all_that_makes_it() -> None:
    model, pruner = pruned(chain(), sparsity=0.5)
    masks = get_masks(model)
    weights = {name: weight.parameter for name, weight in masked_weights(model).items()}
    for name, count in (("0", 2), ("2", 2)):
        gone = lowest_means([weights[f"{name}.weight"]], count)
        kept = [index not in gone for index in range(len(masks[f"{name}.bias"]))]
        assert rows(masks[f"{name}.weight"]) == rows(masks[f"{name}.bias"]) == kept
    assert masks["4.weight"].all()
    hidden = F.relu(model[0](torch.randn(6, 3)))
    assert not hidden[:, [not kept for kept in rows(masks["0.bias"])]].any()
    assert pruner.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_half_of_the_units_is_floor_of_half_in_every_scope() -> None:
    for scope, expected in (("layer", 2 + 2), ("global", 4), ("erk", 4)):
        _, pruner = pruned(chain(), scope=scope)
        report = pruner.report()
        assert (report.due, report.chosen, report.choices) == (expected, expected, 9), scope
    _, pruner = pruned(tied())
    assert [(layer.units, layer.removed) for layer in pruner.report().coupled] == [(4, 2), (3, 1)]


def test_units_that_stay_do_not_count() -> None:
    model, pruner = pruned(tied(), sparsity=0.75)
    masks = get_masks(model)
    assert masks["a.weight"][0].all() and masks["a.bias"][0] and masks["c.weight"][0].all()
    assert [(layer.units, layer.removed) for layer in pruner.report().coupled] == [(4, 3), (3, 2)]
    assert rows(masks["a.weight"]) == rows(masks["c.weight"]) == rows(masks["a.bias"])


@pytest.mark.parametrize("aggregate", [None, "mean", "sum", "max", "l2"])
def test_tied_weights_are_scored_together(aggregate: str | None) -> None:
    example = tied()
    a, c = (masked_weights(example[0])[f"{n}.weight"].parameter.detach().double().numpy()[1:] for n in "ac")
    scores = {
        "mean": (np.abs(a).mean(1) + np.abs(c).mean(1)) / 2,
        "sum": np.abs(a).sum(1) + np.abs(c).sum(1),
        "max": np.maximum(np.abs(a).mean(1), np.abs(c).mean(1)),
        "l2": np.sqrt((a**2).sum(1) + (c**2).sum(1)),
    }[aggregate or "mean"]
    granularity = {"name": "unit"} | ({"aggregate": aggregate} if aggregate else {})
    model, _ = pruned(example, granularity=granularity, sparsity=0.75)
    assert rows(get_masks(model)["a.weight"])[1:] == [index == scores.argmax() for index in range(4)]


def test_signed_scores_keep_their_sign() -> None:
    def signed(weights: Any, context: Any) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in weights.items()}

    example = chain()
    expected = masked_weights(example[0])["0.weight"].parameter.sum(1).argsort()[:3]
    model, _ = pruned(example, criterion=signed, sparsity=0.75)
    assert sorted(expected.tolist()) == [i for i, kept in enumerate(rows(get_masks(model)["0.weight"])) if not kept]


@pytest.mark.parametrize(("ignore", "left"), [("c", [4, 5, 6]), ("b", [0, 1, 2, 3]), (["a", "b"], [])])
def test_a_unit_with_an_ignored_weight_stays(ignore: Any, left: list[int]) -> None:
    model, channels = tied()
    if not left:
        with pytest.raises(SparsifyError, match="no unit of this model can be removed: a.weight is ignored"):
            pruned((model, channels), ignore=ignore)
        return
    _, pruner = pruned((model, channels), ignore=ignore)
    report = pruner.report()
    assert report.choices == len(left) and report.chosen == len(left) // 2
    assert report.notes[0] == "a barrier" and f"units stay: {ignore}.weight is ignored" in report.notes[1]
    assert get_masks(model)[f"{ignore}.weight"].all()


def test_a_unit_with_a_weight_without_mask_stays() -> None:
    model, channels = tied()
    plain = nn.ModuleDict(
        {name: nn.Linear(m.in_features, m.out_features, bias=name in "ad") for name, m in model.items()}
    )
    convert(plain, ignore=["c"])
    _, pruner = pruned((plain, channels))
    assert pruner.report().choices == 3 and "c.weight carries no mask" in pruner.report().notes[1]


def test_what_is_no_parameter_takes_no_mask() -> None:
    model, channels = chain()
    model[1].register_buffer("table", torch.zeros(4))
    channels.labels["1.table"], channels.produced["1.table"] = {0: torch.arange(4)}, 0
    _, pruner = pruned((model, channels))
    assert pruner.report().choices == 5 and "4 units stay: 1.table is no parameter" in pruner.report().notes[0]


def test_of_every_layer_the_best_unit_stays_and_the_report_says_so() -> None:
    with pytest.warns(
        SparsityWarning, match=r"0.778 of the units is removed, 1 was requested: the last unit of a layer"
    ):
        model, pruner = pruned(chain(), sparsity=1.0, scope="global")
    report = pruner.report()
    assert (report.due, report.chosen) == (9, 7)
    means = masked_weights(model)["2.weight"].parameter.abs().mean(1)
    assert rows(get_masks(model)["2.weight"]) == [index == int(means.argmax()) for index in range(5)]
    _, pruner = pruned(chain(), sparsity=0.99, scope="layer")
    assert [(layer.units, layer.removed) for layer in pruner.report().coupled] == [(4, 3), (5, 4)]


def test_a_layer_all_of_whose_scores_are_low_keeps_one_unit_and_others_go_for_it() -> None:
    model, channels = chain()
    with torch.no_grad():
        masked_weights(model)["0.weight"].parameter.mul_(1e-3)
    _, pruner = pruned((model, channels), scope="global", sparsity=0.56)  # five of nine
    assert [(layer.units, layer.removed) for layer in pruner.report().coupled] == [(4, 3), (5, 2)]


def test_groups_without_a_weight_are_scored_by_what_else_makes_them() -> None:
    model, channels = chain()
    del channels.produced["0.weight"]
    pruned((model, channels))
    gone = lowest_means([model[0].bias[:, None]], 2)
    assert rows(get_masks(model)["0.bias"]) == [index not in gone for index in range(4)]
    assert get_masks(model)["0.weight"].all()


def test_a_nan_names_the_weight() -> None:
    model, channels = chain()
    with torch.no_grad():
        masked_weights(model)["2.weight"].parameter[1, 0] = float("nan")
    with pytest.raises(SparsifyError, match=r"2.weight: a score is NaN"):
        pruned((model, channels))


CYCLES = {"schedule": {"name": "cyclic", "cycles": 3}, "end": "9it", "every": "1it", "after_cycles": "union"}


def train(model: nn.Module, pruner: Pruner, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x + pruner.position).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pruner.step()


def test_a_union_holds_whole_units() -> None:
    model, channels = chain()
    pruner = Pruner(model, {"granularity": "unit", "sparsity": 0.6, **CYCLES}, 10, channels=channels)
    pruner.start()
    union = {name: torch.zeros_like(get_masks(model)[name]) for name in pruner.names}
    ends = []
    for step in range(1, 10):
        train(model, pruner, 1)
        if step in (3, 6):
            state = pruner.state_dict()
            ends.append({name: state[f"union/{name}"] for name in union})
        if step >= 6:
            for name, mask in get_masks(model).items():
                if name in union:
                    rows(mask)
                    assert not (mask & ~ends[1][name]).any()
    report = pruner.report()
    assert pruner.finished and report.chosen == report.due == 2 + 3


def test_without_regrow_units_only_go() -> None:
    model, channels = chain()
    settings = {"granularity": "unit", "sparsity": 0.6, "schedule": "linear", "end": "6it", "every": "1it"}
    pruner = Pruner(model, settings | {"regrow": False, "scope": "global"}, 6, channels=channels)
    before = get_masks(model)["2.bias"].clone()
    for _ in range(6):
        train(model, pruner, 1)
        assert not (get_masks(model)["2.bias"] & ~before).any()
        before = get_masks(model)["2.bias"].clone()
    assert pruner.report().chosen == 5


@pytest.mark.parametrize("extra", [{}, {"masked_weights": "freeze"}, {"scope": "global", "of": "flops"}])
def test_a_run_resumed_at_any_step_equals_one_that_was_not_interrupted(extra: dict[str, Any]) -> None:
    settings = {"granularity": "unit", "sparsity": 0.6, **CYCLES, **extra}
    model, channels = chain()
    pruner = Pruner(model, settings, 10, channels=channels)
    pruner.start()
    saved = []
    for _ in range(10):
        saved.append(copy.deepcopy((model.state_dict(), pruner.state_dict())))
        train(model, pruner, 1)
    for step, (model_state, pruner_state) in enumerate(saved):
        other, channels = chain()
        again = Pruner(other, settings, 10, channels=channels)
        again.load_state_dict(pruner_state)
        other.load_state_dict(model_state)
        train(other, again, 10 - step)
        assert again.sparsity == pruner.sparsity
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
        )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm2(self.depthwise(x)))
        x = x + self.outer(F.gelu(self.inner(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "synflow", "random"])
def test_a_real_network_from_its_example_input(criterion: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    convert(model)
    example = torch.randn(2, 3, 5, 5)
    settings = {"granularity": "unit", "sparsity": 0.5, "criterion": criterion}
    pruner = Pruner(model, settings, 0, example_input=example)
    pruner.start([(example, torch.tensor([1, 2]))], F.cross_entropy)
    masks = get_masks(model)
    stream, inner = rows(masks["stem.weight"]), rows(masks["inner.weight"])
    for name in ("norm.weight", "norm.bias", "norm2.weight", "norm2.bias", "depthwise.bias", "outer.bias"):
        assert rows(masks[name]) == stream, name
    assert rows(masks["depthwise.weight"]) == rows(masks["outer.weight"]) == stream
    assert rows(masks["inner.bias"]) == inner
    assert (sum(stream), sum(inner)) == (3, 4) and masks["head.weight"].all()
    assert pruner.report().chosen == pruner.report().due == 7


def test_without_an_example_a_unit_is_a_row() -> None:
    model, _ = chain()
    pruner = Pruner(model, {"granularity": "unit", "sparsity": 0.5}, 0)
    pruner.start()
    assert pruner.names == ("0.weight", "2.weight", "4.weight") == tuple(masked_parameters(model))
    assert pruner.report().coupled == () and pruner.report().chosen == 2 + 2 + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"granularity": {"name": "unit", "aggregate": "l2"}},
        {"granularity": {"name": "unit", "heads": "size"}},
        {"granularity": "unit", "of": "flops", "scope": "global"},
        {"granularity": "unit", "criterion": {"name": "magnitude", "per": "flops"}},
    ],
)
def test_settings_that_need_groups_are_refused_without_an_example(settings: dict[str, Any]) -> None:
    with pytest.raises(SparsifyError, match="needs to know which units belong together: give Pruner an example_input"):
        Pruner(chain()[0], {"sparsity": 0.5, **settings}, 0)


def test_sizes_of_heads_are_pruned_in_all_heads_alike() -> None:
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 4, 5)
    convert(model)
    settings = {"granularity": {"name": "unit", "heads": "size"}, "sparsity": 0.5, "scope": "layer", "ignore": "proj"}
    pruner = Pruner(model, settings, 0, example_input=x)
    pruner.start()
    q, k, v = (rows(get_masks(model)[f"{name}.weight"]) for name in "qkv")
    assert q == k == q[:3] * 2 and sum(q) == 2 * 2 and v == v[:2] * 2 and sum(v) == 2
    report = shrink(model, x, heads="size")
    assert report.removed == 2 and report.model.proj.in_features == 2
    torch.testing.assert_close(report.model(x), model(x))


def test_sparsities_are_exact_decimals() -> None:
    _, pruner = pruned(chain(), scope="global", sparsity=0.3)
    assert pruner.report().chosen == int(Fraction("0.3") * 9) == 2
