"""The pruner: what happens at which step, to masks and to stored values, and going on from a saved state."""

import copy
import json
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.table import Context
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.report import SparsityWarning
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.examples import linear_model, small_network

# Weights this small often lose a whole row; the tests of that warning ask for it themselves.
pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")

LINEAR = {"sparsity": 0.5, "schedule": "linear", "end": "10it", "every": "2it"}
UNION = {
    "sparsity": 0.5,
    "schedule": {"name": "cyclic", "cycles": 3},
    "end": "9it",
    "every": "1it",
    "after_cycles": "union",
}


def removed(model: nn.Module) -> int:
    return sum(int((~mask).sum()) for mask in get_masks(model).values())


def train(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
        pruner.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def test_sparsity_follows_the_plan() -> None:
    model = linear_model(torch.randn(4, 5))
    pruner = Pruner(model, LINEAR, total_steps=20)
    pruner.start()
    trace = [(pruner.sparsity, removed(model))]
    for _ in range(12):
        pruner.step()
        trace.append((pruner.sparsity, removed(model)))
    assert trace[0] == trace[1] == (0.0, 0)
    assert [round(sparsity, 9) for sparsity, _ in trace[2::2]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
    assert [count for _, count in trace] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 10]
    assert pruner.finished and pruner.position == 12


def test_one_shot_happens_before_the_first_step_or_at_any_other_moment() -> None:
    for begin in (0, 3):
        model = linear_model(torch.randn(2, 5))
        pruner = Pruner(model, {"sparsity": 0.5, "begin": f"{begin}it"}, total_steps=5)
        pruner.start()
        for step in range(5):
            assert removed(model) == (5 if step >= begin else 0)
            assert pruner.finished == (step >= begin)
            pruner.step()


def test_step_starts_a_pruner_that_needs_no_data() -> None:
    model = linear_model(torch.randn(2, 5))
    Pruner(model, {"sparsity": 0.5}, total_steps=5).step()
    assert removed(model) == 5


def test_step_refuses_to_go_on_without_the_data_that_a_criterion_needs() -> None:
    pruner = Pruner(linear_model(torch.randn(2, 5)), LINEAR | {"criterion": "snip", "begin": "5it"}, total_steps=20)
    with pytest.raises(SparsifyError, match=r"criterion 'snip' needs data: call pruner.start\(batches, loss_fn\)"):
        pruner.step()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        lambda outputs, targets: F.cross_entropy(outputs, targets),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    ],
)
def test_a_loss_is_of_outputs_and_targets_or_of_model_and_batch(loss: Any) -> None:
    inputs, targets = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 0, 1])
    weight = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(F.linear(inputs, weight), targets), weight)
    model = linear_model(weight.detach().clone())
    Pruner(model, {"sparsity": 0.5, "criterion": "snip"}, total_steps=5).start([(inputs, targets)], loss)
    (mask,) = get_masks(model).values()
    kept = (weight * gradient).abs().flatten().topk(5).indices
    assert mask.flatten().nonzero().flatten().tolist() == sorted(kept.tolist())


def test_snip_scores_the_same_batches_again_at_every_update() -> None:
    model = linear_model(torch.randn(2, 5))
    pruner = Pruner(model, LINEAR | {"criterion": "snip", "begin": 0}, total_steps=20)
    calls: list[float] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(float(batch.sum()))
        return model(batch).square().sum()

    pruner.start((torch.full((1, 5), float(k)) for k in (1, 2)), loss)
    for _ in range(12):
        pruner.step()
    assert calls == [5.0, 10.0] * 5
    assert removed(model) == 5


def test_masks_are_changed_in_place() -> None:
    model = small_network()
    before = {name: (id(mask), mask.data_ptr()) for name, mask in get_masks(model).items()}
    Pruner(model, {"sparsity": 0.5}, 0).start()
    assert {name: (id(mask), mask.data_ptr()) for name, mask in get_masks(model).items()} == before


def test_masks_that_a_move_replaced_are_found_again() -> None:
    model = small_network()
    pruner = Pruner(model, LINEAR, 20)
    pruner.start()
    model.double()
    for name, mask in model.state_dict().items():
        assert name.endswith("_mask") == (mask.dtype == torch.bool)
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.clone()
    for _ in range(10):
        pruner.step()
    assert pruner.report().chosen == pruner.report().due == removed(model) > 0


def test_a_shared_parameter_counts_once_and_all_its_masks_agree() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    convert(model)
    Pruner(model, {"sparsity": 0.5}, 0).start()
    masks = [mask for name, mask in model.state_dict().items() if name.endswith("_mask")]
    assert len(masks) == 2 and torch.equal(*masks)
    assert int((~masks[0]).sum()) == 8


def test_ignored_weights_are_left_alone_and_do_not_count() -> None:
    model = linear_model(torch.randn(2, 5), torch.randn(3, 2), torch.randn(4, 3))
    pruner = Pruner(model, {"sparsity": 0.5, "scope": "global", "ignore": ["first", "2"]}, 0)
    pruner.start()
    assert pruner.names == ("1.weight",)
    assert {name: int((~mask).sum()) for name, mask in get_masks(model).items()} == {
        "0.weight": 0,
        "1.weight": 3,
        "2.weight": 0,
    }


def test_last_is_the_last_weight_whether_or_not_it_was_converted() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    convert(model, ignore=["last"])
    assert Pruner(model, {"sparsity": 0.5, "ignore": "last"}, 0).names == ("0.weight", "1.weight")


@pytest.mark.parametrize(
    ("ignore", "message"), [(["*"], "leaves none of the 1 masked weights"), (["head"], "'head' matches no weight")]
)
def test_wrong_ignore_is_one_line(ignore: list[str], message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        Pruner(linear_model(torch.randn(2, 5)), {"sparsity": 0.5, "ignore": ignore}, 0)


def test_a_model_that_was_not_converted_is_refused() -> None:
    with pytest.raises(SparsifyError, match="no masked weight; call sparsify.convert"):
        Pruner(nn.Linear(2, 2), {"sparsity": 0.5}, 0)


def test_a_removed_weight_returns_by_its_stored_value_only_with_regrow() -> None:
    for regrow, kept in ((True, [0]), (False, [2])):
        model = linear_model(torch.tensor([[1.0, 2.0, 3.0]]))
        pruner = Pruner(model, {"sparsity": 0.7, "schedule": "constant", "end": 1, "every": "1it", "regrow": regrow}, 3)
        pruner.start()
        assert get_masks(model)["0.weight"].flatten().nonzero().flatten().tolist() == [2]
        with torch.no_grad():
            masked_weights(model)["0.weight"].parameter[0, 0] = 9.0
        pruner.step()
        assert get_masks(model)["0.weight"].flatten().nonzero().flatten().tolist() == kept


def test_without_regrow_a_ramp_only_removes() -> None:
    model = small_network()
    pruner, optimizer = Pruner(model, LINEAR | {"regrow": False, "every": "1it"}, 20), sgd(model)
    pruner.start()
    before = {name: mask.clone() for name, mask in get_masks(model).items()}
    for _ in range(10):
        train(model, pruner, optimizer, 1)
        for name, mask in get_masks(model).items():
            assert not (mask & ~before[name]).any()
            before[name] = mask.clone()


def test_random_scores_do_not_change_within_a_cycle_and_do_between_cycles() -> None:
    model = linear_model(torch.randn(10, 20))
    pruner = Pruner(model, UNION | {"criterion": "random", "end": "12it", "after_cycles": None}, total_steps=12)
    pruner.start()
    history = []
    for _ in range(12):
        pruner.step()
        history.append(get_masks(model)["0.weight"].clone())
    for first, second in ((0, 1), (1, 2), (4, 5), (5, 6), (8, 9), (9, 10)):
        assert not (history[second] & ~history[first]).any()
    assert not torch.equal(history[2], history[6])


def test_decay_leaves_removed_values_to_the_optimiser() -> None:
    model = linear_model(torch.tensor([[1.0, 4.0]]))
    pruner = Pruner(model, {"sparsity": 0.5}, 5)
    pruner.start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    pruner.step()
    assert masked_weights(model)["0.weight"].parameter.tolist() == [[0.75, 2.5]]


@pytest.mark.parametrize("masked_weights_setting", ["freeze", "zero"])
def test_freeze_and_zero_hold_removed_values_at_every_step(masked_weights_setting: str) -> None:
    model = small_network()
    pruner = Pruner(model, UNION | {"masked_weights": masked_weights_setting}, total_steps=14)
    optimizer = sgd(model)
    pruner.start()
    held: dict[str, Tensor] = {}
    for _ in range(14):
        train(model, pruner, optimizer, 1)
        for name, weight in masked_weights(model).items():
            values, gone = weight.parameter.detach().clone(), ~weight.mask
            if masked_weights_setting == "zero":
                assert not values[gone].any()
            elif name in held:
                was_gone = gone & ~held[f"{name} mask"]
                assert torch.equal(values[was_gone], held[name][was_gone])
            held[name], held[f"{name} mask"] = values, weight.mask.clone()
    assert removed(model) > 0


def test_with_freeze_values_come_back_at_the_reset_as_they_went() -> None:
    model = linear_model(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    pruner = Pruner(model, UNION | {"masked_weights": "freeze", "after_cycles": None}, total_steps=9)
    pruner.start()
    parameter = masked_weights(model)["0.weight"].parameter
    for step in range(3):
        with torch.no_grad():
            parameter.sub_(0.25)
        pruner.step()
        if step == 0:  # 0.5 * sin(pi/6) of four is one: the first, which is at 0.75 from now on
            assert get_masks(model)["0.weight"].tolist() == [[False, True, True, True]]
    assert get_masks(model)["0.weight"].all()
    assert parameter.tolist() == [[0.75, 1.25, 2.25, 3.25]]


def snapshot(model: nn.Module, pruner: Pruner) -> tuple[Any, ...]:
    weights = [tensor.clone() for tensor in model.state_dict().values()]
    return (*weights, torch.tensor([pruner.sparsity, pruner.cycle, pruner.position, pruner.finished]))


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize(
    ("held", "selection"),
    [
        ("decay", {"scope": "global"}),
        ("freeze", {"scope": "global"}),
        ("freeze", {"granularity": "1:2", "sparsity": 0.5}),
        ("decay", {"granularity": "2x3"}),
    ],
)
def test_a_run_resumed_at_any_step_equals_one_that_was_not_interrupted(
    criterion: str, held: str, selection: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    settings = UNION | {"criterion": criterion, "masked_weights": held} | selection
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.Linear(3, 4))
    convert(model)
    optimizer, pruner = sgd(model), Pruner(model, settings, 11, generator=torch.Generator().manual_seed(4))
    saved = []
    pruner.start()
    for _ in range(12):
        saved.append(copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict())))
        train(model, pruner, optimizer, 1)
    expected = snapshot(model, pruner)
    for step, (model_state, optimizer_state, pruner_state) in enumerate(saved):
        other = nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.Linear(3, 4))
        convert(other)
        again, going_on = sgd(other), Pruner(other, settings, 11)
        going_on.load_state_dict(pruner_state)
        other.load_state_dict(model_state)
        again.load_state_dict(optimizer_state)
        train(other, going_on, again, 12 - step)
        assert all(torch.equal(a, b) for a, b in zip(snapshot(other, going_on), expected, strict=True)), step


def test_the_state_is_flat_and_plain() -> None:
    model = small_network()
    pruner = Pruner(model, UNION | {"masked_weights": "freeze"}, 11)
    train(model, pruner, sgd(model), 5)
    state = pruner.state_dict()
    assert {type(value) for value in state.values()} == {int, float, bool, str, Tensor}
    assert {key.partition("/")[0] for key in state if "/" in key} == {"union", "frozen"}


def test_a_loaded_state_is_a_copy() -> None:
    model = small_network()
    pruner = Pruner(model, UNION, 11)
    train(model, pruner, sgd(model), 4)
    state = pruner.state_dict()
    other = Pruner(small_network(), UNION, 11)
    other.load_state_dict(state)
    state["union/0.weight"].fill_(False)
    assert other.state_dict()["union/0.weight"].any() and pruner.state_dict()["union/0.weight"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this sparsify reads version 1"),
        ({"position": None}, "'position' is missing or no int"),
        ({"extra": 1}, "unknown entry 'extra'"),
        ({"union/9.weight": torch.ones(1)}, "'union/9.weight' fits no weight"),
        ({"union/0.weight": torch.ones(1)}, "'union/0.weight' fits no weight"),
        ({"union/0.weight": "absent"}, "'union/0.weight' is missing"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    model = small_network()
    pruner = Pruner(model, UNION, 11)
    train(model, pruner, sgd(model), 4)
    state = {
        key: value
        for key, value in {**pruner.state_dict(), **change}.items()
        if not isinstance(value, str) or value != "absent"
    }
    other = Pruner(small_network(), UNION, 11)
    with pytest.raises(SparsifyError, match=message):
        other.load_state_dict(state)
    assert (other.position, other.cycle) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "total", "message"),
    [
        (UNION | {"sparsity": 0.6}, 11, "saved with sparsity 0.5, this pruner has 0.6"),
        (UNION, 12, "saved with total_steps 11, this pruner has 12"),
        (UNION | {"ignore": "first"}, 11, "saved with ignore"),
    ],
)
def test_a_state_of_other_settings_is_refused(settings: dict[str, Any], total: int, message: str) -> None:
    state = Pruner(small_network(), UNION, 11).state_dict()
    with pytest.raises(SparsifyError, match=message):
        Pruner(small_network(), settings, total).load_state_dict(state)


def test_a_state_from_before_a_setting_was_known_is_of_the_same_settings() -> None:
    model = linear_model(torch.randn(4, 4))
    pruner = Pruner(model, LINEAR, total_steps=20)
    state = pruner.state_dict()
    settings = json.loads(state["settings"])
    del settings["granularity"]["m"], settings["after_cycles"]
    pruner.load_state_dict(state | {"settings": json.dumps(settings)})
    settings["granularity"]["m"] = 4
    with pytest.raises(SparsifyError, match="it was saved with granularity .*'m': 4"):
        pruner.load_state_dict(state | {"settings": json.dumps(settings)})


def test_after_loading_start_only_hands_over_data() -> None:
    model = linear_model(torch.randn(2, 5))
    settings = {"sparsity": 0.5, "criterion": "snip", "schedule": "linear", "end": 1, "every": "1it"}
    loss, batch = (lambda f, x: f(x).square().sum()), [torch.ones(1, 5)]
    first = Pruner(model, settings, 4)
    first.start(batch, loss)
    first.step()
    second = Pruner(model, settings, 4)
    second.load_state_dict(first.state_dict())
    with pytest.raises(SparsifyError, match="needs data"):
        second.step()
    second.start(batch, loss)
    assert second.position == 1
    for _ in range(3):
        second.step()
    assert second.finished and removed(model) == 5


def test_a_passed_generator_decides_and_is_not_rewound() -> None:
    def run(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        model = linear_model(torch.ones(8, 8))
        pruner = Pruner(model, LINEAR | {"criterion": "random"}, 10, generator=generator)
        for _ in range(10):
            pruner.step()
        return get_masks(model)["0.weight"], torch.rand(4, generator=generator)

    assert torch.equal(run(1)[0], run(1)[0])
    assert not torch.equal(run(1)[0], run(2)[0])
    assert torch.equal(run(1)[1], run(1)[1])


def test_report_compares_reached_with_requested() -> None:
    model = linear_model(torch.randn(3, 3), torch.randn(5, 2))
    pruner = Pruner(model, {"sparsity": 0.5, "ignore": ["0"]}, 0)
    pruner.start()
    report = pruner.report()
    assert (report.requested, report.due, report.chosen, report.choices, report.parameters) == (0.5, 5, 5, 10, 19)
    assert (report.reached, report.model_sparsity) == (0.5, 5 / 19)
    by_filter = Pruner(linear_model(torch.randn(3, 3)), {"sparsity": 0.5, "scope": "filter"}, 0)
    by_filter.start()
    assert (by_filter.report().due, by_filter.report().reached) == (3, 3 / 9)


def test_units_are_reported_as_units() -> None:
    model = linear_model(torch.randn(5, 3))
    pruner = Pruner(model, {"sparsity": 0.5, "granularity": "unit"}, 0)
    pruner.start()
    report = pruner.report()
    assert (report.due, report.chosen, report.choices, report.removed, report.size) == (2, 2, 5, 6, 15)


def test_a_layer_or_filter_without_weights_is_a_warning_that_names_it() -> None:
    weights = torch.tensor([[0.0, 0.0], [5.0, 6.0]]), torch.zeros(1, 2), torch.ones(3, 2)
    pruner = Pruner(linear_model(*weights), {"sparsity": 0.4, "scope": "global"}, 0)
    with pytest.warns(SparsityWarning) as caught:
        pruner.start()
    assert [str(warning.message) for warning in caught] == [
        "no weight is left in 1.weight: the model cannot work",
        "filters lost all their weights: 0.weight 0 of 2",
    ]


@pytest.mark.parametrize(("layers", "more"), [(3, ""), (4, "; and in 1 more layer"), (5, "; and in 2 more layers")])
def test_a_warning_on_many_layers_names_the_first_three(layers: int, more: str) -> None:
    model = linear_model(*[torch.tensor([[0.0, 0.0], [5.0, 6.0]])] * layers)
    with pytest.warns(SparsityWarning) as caught:
        Pruner(model, {"sparsity": 0.5, "scope": "global"}, 0).start()
    named = "; ".join(f"{index}.weight 0 of 2" for index in range(3))
    assert [str(warning.message) for warning in caught] == [f"filters lost all their weights: {named}{more}"]


def test_units_that_go_as_asked_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(linear_model(torch.randn(4, 2)), {"sparsity": 0.5, "granularity": "unit"}, 0).start()


def test_a_step_without_an_update_does_not_look_at_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = Pruner(linear_model(torch.randn(4, 2)), LINEAR | {"every": "5it"}, total_steps=50)
    pruner.start()
    pruner.model = nn.Module()  # would have no masks to be found
    for _ in range(4):
        pruner.step()
    with pytest.raises(SparsifyError, match="no masked weight"):
        pruner.step()


def test_a_criterion_sees_the_step_it_is_asked_at() -> None:
    steps: list[int] = []

    def ones(weights: Any, context: Context) -> dict[str, Tensor]:
        steps.append(context.step)
        return {name: torch.ones_like(weight) for name, weight in weights.items()}

    pruner = Pruner(linear_model(torch.randn(4, 2)), LINEAR | {"criterion": ones}, total_steps=20)
    for _ in range(12):
        pruner.step()
    assert steps == [2, 4, 6, 8, 10]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "snip"])
def test_a_union_on_an_accelerator_ends_as_asked(scope: str, criterion: str) -> None:
    model = small_network().cuda()
    settings = UNION | {"scope": scope, "criterion": criterion, "masked_weights": "freeze"}
    pruner, optimizer = Pruner(model, settings, 11), sgd(model)
    x, y = torch.randn(4, 3, 6, 6, device="cuda"), torch.arange(4, device="cuda")
    pruner.start([x], lambda model, batch: F.cross_entropy(model(batch), y))
    for _ in range(11):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()
    assert pruner.report().chosen == pruner.report().due == removed(model)


def test_a_cycle_that_ends_is_told_while_the_model_has_its_masks() -> None:
    for settings, told in (
        (UNION, [(1, 3, 10), (2, 6, 10), (3, 9, 10)]),
        (UNION | {"after_cycles": "last"}, [(1, 3, 10), (2, 6, 10), (3, 9, 10)]),
        (LINEAR, []),
    ):
        model = linear_model(torch.randn(4, 5))
        found: list[tuple[int, int, int]] = []
        pruner = Pruner(model, settings, total_steps=12)

        def note(cycle: int, pruner: Pruner = pruner, model: nn.Module = model, found: Any = found) -> None:
            found.append((cycle, pruner.position, removed(model)))

        pruner.on_cycle_end = note
        pruner.start()
        for _ in range(12):
            pruner.step()
        assert found == told


def test_every_name_of_a_shared_weight_has_the_mask_when_a_cycle_ends() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    convert(model)
    pruner, agree = Pruner(model, UNION, total_steps=12), []
    pruner.on_cycle_end = lambda cycle: agree.append(torch.equal(model[0].weight_mask, model[2].weight_mask))
    pruner.start()
    for _ in range(12):
        pruner.step()
    assert agree == [True] * 3 and not model[0].weight_mask.all()
