"""What holds for every criterion, schedule, scope and granularity."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.pruning.criteria.table import CRITERIA, Absolute, Context
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.schedules import SCHEDULES, update_plan
from sparsify.pruning.selection.granularity import GRANULARITIES
from sparsify.pruning.selection.scopes import SCOPES
from sparsify.pruning.settings import prune as settings
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.pruning.settings.sections import CRITERION_ROWS, UNIT_CRITERIA
from sparsify.surgery.mask_state.masks import effective_weight, get_masks, masked_weights
from tests.pruning.examples import batches, loss_fn, small_network

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")

SCHEDULE_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "one_shot": [{}],
    "linear": [{}, {"initial_sparsity": 0.2}],
    "cubic": [{}, {"initial_sparsity": 0.2}],
    "constant": [{}],
    "cyclic": [{"cycles": 3}, {"cycles": 3, "ramp": "full"}, {"cycle_length": "10it"}],
}
EVERY_SCHEDULE = [{"name": name} | given for name, variants in SCHEDULE_SETTINGS.items() for given in variants]


def _scopes_of(granularity: str) -> list[str]:
    return (
        ["layer"]
        if granularity == "n:m"
        else [s for s in SCOPES if s != "filter" or granularity in ("weight", "block")]
    )


GRANULARITY_SETTINGS = {"weight": "weight", "unit": "unit", "block": "3x2", "n:m": "2:4", "groups": "unit"}
EVERY_SELECTION = [(s, g) for s in SCOPES for g in GRANULARITY_SETTINGS if s in _scopes_of(g)]
UNITS = ("unit", "groups")
EVERY_CHOICE = [(c, s, g) for c in CRITERIA for s, g in EVERY_SELECTION if c not in UNIT_CRITERIA or g in UNITS]


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for three rounds of SynFlow holds for its hundred."""
    monkeypatch.setattr(settings, "SYNFLOW_ROUNDS", 3)


def settings_of(granularity: str, sparsity: float = 0.6) -> dict[str, Any]:
    """Return the settings of a granularity; of n:m those that are nearest to the sparsity."""
    if granularity == "n:m":
        return {"granularity": "2:4" if sparsity > 0.4 else "3:4"}
    return {"granularity": GRANULARITY_SETTINGS[granularity], "sparsity": sparsity}


def example_of(granularity: str) -> Tensor | None:
    """Return the input that makes units of groups: what is pruned together is then found in the model's graph."""
    return torch.zeros(2, 3, 6, 6) if granularity == "groups" else None


def network_for(criterion: str) -> nn.Module:
    """Return a network that the criterion can score: for bn_scale a norm follows every layer."""
    return small_network(norms=criterion == "bn_scale")


def removed(model: nn.Module) -> int:
    return sum(int((~mask).sum()) for mask in get_masks(model).values())


def test_the_names_a_recipe_knows_are_those_of_the_tables() -> None:
    assert settings.CRITERION_NAMES == tuple(CRITERIA)
    for name, row in CRITERION_ROWS.items():
        # Before the first step there are no sums, and a criterion that adds over steps needs data as well.
        assert row.needs_data == any(hasattr(CRITERIA[name], mark) for mark in ("needs_data", "adds_over_steps"))
        assert row.text.startswith(name)
    assert settings.SCOPE_NAMES == tuple(SCOPES)
    assert settings.GRANULARITY_NAMES == tuple(GRANULARITIES) == tuple(GRANULARITY_SETTINGS)[:-1]
    assert settings.SCHEDULE_NAMES == tuple(SCHEDULES) == tuple(SCHEDULE_SETTINGS)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_scores_every_weight_and_leaves_the_model_alone(name: str) -> None:
    model = network_for(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: effective_weight(weight) for key, weight in masked_weights(model).items()}

    def scores() -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        context = Context(
            model, get_masks(model), 3, generator, batches(), loss_fn, example_input=torch.zeros(1, 3, 6, 6)
        )
        answer = CRITERIA[name](weights, context)
        assert list(answer) == list(weights)
        return [s.values.abs() if isinstance(s, Absolute) else s for s in answer.values()]

    first, again = scores(), scores()
    assert [s.shape for s in first] == [weight.shape for weight in weights.values()]
    assert all(s.isfinite().all() and s.is_floating_point() and s.unique().numel() > 1 for s in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_a_schedule_stays_within_the_target_and_ends_on_it(schedule: dict[str, Any]) -> None:
    pruning = parse_pruning({"sparsity": 0.7, "schedule": schedule})
    curve = SCHEDULES[pruning.schedule.name]
    values = [curve(Fraction(k, 50), pruning) for k in range(51)]
    assert all(0 <= value <= Fraction("0.7") for value in values)
    assert values == sorted(values) and values[-1] == Fraction("0.7")


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_a_plan_reaches_the_target_at_its_end(schedule: dict[str, Any]) -> None:
    end = {} if schedule["name"] == "one_shot" else {"end": "30it", "every": "4it"}
    updates = update_plan(parse_pruning({"sparsity": 0.7, "schedule": schedule} | end), 40)
    assert updates[-1].sparsity == Fraction("0.7") and updates[-1].step == (30 if end else 0)
    assert all(update.sparsity is not None and 0 <= update.sparsity <= Fraction("0.7") for update in updates)


@pytest.mark.parametrize(("criterion", "scope", "granularity"), EVERY_CHOICE)
def test_any_selection_removes_exactly_what_is_due_and_the_same_again(
    criterion: str, scope: str, granularity: str
) -> None:
    pruning = {"scope": scope, "criterion": criterion} | settings_of(granularity)
    found = []
    for _ in range(2):
        model = network_for(criterion)
        pruner = Pruner(model, pruning, 0, example_input=example_of(granularity))
        pruner.start(batches(), loss_fn)
        report = pruner.report()
        assert report.chosen == report.due
        assert granularity not in ("weight", "n:m") or report.removed == report.due == removed(model)
        found.append(get_masks(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_criterion_goes_through_any_schedule(criterion: str, schedule: dict[str, Any]) -> None:
    model = network_for(criterion)
    pruning = {"criterion": criterion, "sparsity": 0.6, "schedule": schedule, "regrow": schedule.get("ramp") == "full"}
    pruning |= {"granularity": "unit"} if criterion in UNIT_CRITERIA else {}
    pruning |= {"end": "6it", "every": "3it"} if schedule["name"] != "one_shot" else {}
    pruning |= {"schedule": {**schedule, "cycle_length": "2it"}} if "cycle_length" in schedule else {}
    pruner = Pruner(model, pruning, 6)
    pruner.start(batches(), loss_fn)
    for _ in range(6):
        pruner.step()
    assert pruner.finished and pruner.report().chosen == pruner.report().due > 0


@pytest.mark.parametrize("criterion", UNIT_CRITERIA)
def test_a_score_of_units_is_not_for_single_weights(criterion: str) -> None:
    for granularity in ("weight", "3x2", "2:4"):
        with pytest.raises(SparsifyError, match=f"'{criterion}' compares units: it needs granularity unit"):
            parse_pruning({"criterion": criterion, "granularity": granularity, "sparsity": 0.5})


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize(("scope", "granularity"), EVERY_SELECTION)
def test_any_schedule_ends_with_exactly_what_is_due(schedule: dict[str, Any], scope: str, granularity: str) -> None:
    model = small_network()
    pruning: dict[str, Any] = {"scope": scope, "schedule": schedule} | settings_of(granularity)
    if schedule["name"] != "one_shot":
        pruning |= {"end": "30it", "every": "4it"}
    if schedule["name"] == "cyclic":
        pruning |= {"after_cycles": "union"}
    pruner = Pruner(model, pruning, 31, example_input=example_of(granularity))
    generator = torch.Generator().manual_seed(0)
    for _ in range(31):
        with torch.no_grad():
            for weight in masked_weights(model).values():
                weight.parameter.add_(torch.randn(weight.parameter.shape, generator=generator), alpha=0.1)
        pruner.step()
    report = pruner.report()
    assert pruner.finished and report.chosen == report.due > 0


@pytest.mark.parametrize(("scope", "granularity"), EVERY_SELECTION)
def test_more_sparsity_removes_a_superset_of_the_same_scores(scope: str, granularity: str) -> None:
    masks = []
    for sparsity in (0.3, 0.6):
        model = small_network()
        pruning = {"scope": scope} | settings_of(granularity, sparsity)
        Pruner(model, pruning, 0, example_input=example_of(granularity)).start()
        masks.append(get_masks(model))
    assert all(not (masks[1][name] & ~masks[0][name]).any() for name in masks[0])


@pytest.mark.parametrize(("criterion", "scope", "granularity"), EVERY_CHOICE)
def test_an_error_on_the_way_changes_no_mask(criterion: str, scope: str, granularity: str) -> None:
    """A score of the last weight that is NaN, and a criterion that fails in its second round."""

    def broken(weights: dict[str, Tensor], context: Context) -> Any:
        scores = dict(CRITERIA[criterion](weights, context))
        last = list(scores)[-1]
        given = scores[last]
        values = (given.values if isinstance(given, Absolute) else given).clone()
        values.view(-1)[0 if granularity == "n:m" else -1] = float("nan")  # the last inputs may be in no group
        return {**scores, last: Absolute(values) if isinstance(given, Absolute) else values}

    calls = []

    def failing(weights: dict[str, Tensor], context: Context) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return CRITERIA[criterion](weights, context)

    for function, error in ((broken, "weight: a score is NaN"), (failing, "out of luck")):
        model = network_for(criterion)
        pruning = {"scope": scope, "criterion": {"function": function, "name": "own", "rounds": 2}}
        pruning |= settings_of(granularity)
        pruner = Pruner(model, pruning, 0, example_input=torch.zeros(2, 3, 6, 6))
        before = {name: mask.clone() for name, mask in get_masks(model).items()}
        for _ in range(2 if function is broken else 1):
            with pytest.raises((SparsifyError, RuntimeError), match=error):
                pruner.start(batches(), loss_fn)
            assert all(torch.equal(mask, before[name]) for name, mask in get_masks(model).items())
            assert pruner.sparsity == 0 and not pruner.finished
    pruner.start(batches(), loss_fn)  # after the failure it can be tried again
    assert pruner.finished and removed(model) > 0


@pytest.mark.parametrize(
    ("criterion", "scope", "granularity"), [one for one in EVERY_CHOICE if one[0] != "random" and one[2] != "n:m"]
)
def test_what_is_gone_for_good_has_no_say_in_what_goes_next(criterion: str, scope: str, granularity: str) -> None:
    masks = []
    for stored in (0.0, 1e3, float("nan")):
        model = network_for(criterion)
        generator = torch.Generator().manual_seed(4)
        for weight in masked_weights(model).values():
            weight.mask.copy_(torch.rand(weight.mask.shape, generator=generator) < 0.7)
            with torch.no_grad():
                weight.parameter.masked_fill_(~weight.mask, stored)
        pruning = {"scope": scope, "criterion": criterion, "regrow": False} | settings_of(granularity)
        Pruner(model, pruning, 0, example_input=example_of(granularity)).start(batches(), loss_fn)
        masks.append(get_masks(model))
    assert all(torch.equal(masks[0][name], other[name]) for other in masks[1:] for name in masks[0])


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("scope", "granularity"), EVERY_SELECTION)
def test_a_criterion_may_call_backward_and_leaves_no_trace(scope: str, granularity: str, trained: bool) -> None:
    model = small_network().train(trained)

    @sparsify.needs_data
    def taylor(weights: dict[str, Tensor], context: Context) -> Any:
        assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in context.model.parameters())
        assert context.batches is not None and context.loss_fn is not None
        context.model.train()
        for batch in context.batches:
            context.loss_fn(context.model, batch).backward()
        torch.rand(3)
        context.model[1].weight.requires_grad_(False)  # type: ignore[index, union-attr]
        return {name: weight * context.model.get_parameter(name).grad for name, weight in weights.items()}

    loss_fn(model, batches()[0]).backward()
    frozen = model.get_parameter("0.weight")
    frozen.requires_grad_(False)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}
    buffers = {name: value.clone() for name, value in model.named_buffers() if not name.endswith("_mask")}
    pruner = Pruner(model, {"criterion": taylor, "scope": scope} | settings_of(granularity), 1)
    with pytest.raises(SparsifyError, match="'taylor' needs data"):
        pruner.start()
    state = torch.get_rng_state()
    pruner.start(batches(), loss_fn)
    assert torch.equal(torch.get_rng_state(), state) and pruner.report().chosen == pruner.report().due
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name] and torch.equal(values[name], gradients[name])  # type: ignore[arg-type]
        assert parameter.requires_grad == (parameter is not frozen)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers() if name in buffers)
    assert all(module.training == trained for module in model.modules())
