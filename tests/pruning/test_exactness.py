"""Exact fractions, amounts, scores of what is left, masks that change as a whole or not at all."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sparsify
from sparsify import Pruner, SparsifyError, convert, fold, get_masks, needs_data, save, set_masks
from sparsify.pruning.pruner import ScheduleWarning
from sparsify.pruning.settings.prune import parse_pruning

pytestmark = pytest.mark.filterwarnings("ignore:filters lost all")
ONE_SHOT = {"schedule": "one_shot"}
LINEAR = {"sparsity": 0.5, "schedule": "linear"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    convert(model)
    return model


def removed(model: nn.Module) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in get_masks(model).items()}


@pytest.mark.parametrize("count", [2, 3, 7, 11, 49, 96, 192, 997])
def test_a_ratio_is_the_fraction_that_was_meant(count: int) -> None:
    for part in range(count + 1):
        for written in (part / count, np.float64(part / count), Fraction(part, count), f"{part}/{count}"):
            assert parse_pruning({"sparsity": written}).target * count == part


def test_a_fraction_survives_a_recipe_and_a_state() -> None:
    pruning = parse_pruning({"sparsity": "1/3", "schedule": {"name": "linear", "initial_sparsity": "1/7"}})
    assert pruning.target == Fraction(1, 3)
    dumped = pruning.model_dump(mode="json", exclude_none=True)
    assert dumped["sparsity"] == "1/3" and parse_pruning(dumped) == pruning
    assert parse_pruning({"sparsity": 0.29}).target == Fraction(29, 100)


@pytest.mark.parametrize("wrong", ["1/0", "3/2", "a third", "-1/3", "0,3", 1.5, True, float("nan")])
def test_what_is_no_sparsity_is_refused(wrong: Any) -> None:
    with pytest.raises(SparsifyError, match="pruning.sparsity: .* is no sparsity; it is the fraction removed"):
        parse_pruning({"sparsity": wrong})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scope": "layer"}, {"0.weight": 5, "3.weight": 5, "5.weight": 5}),
        ({"scope": "filter"}, {"0.weight": 40, "3.weight": 30, "5.weight": 20}),
        ({"scope": "layer", "granularity": "unit", "amount": 2}, {"0.weight": 12, "3.weight": 16, "5.weight": 12}),
        ({"scope": "layer", "granularity": "1x2", "amount": 3}, {"0.weight": 6, "3.weight": 6, "5.weight": 6}),
    ],
)
def test_an_amount_goes_from_each_group(settings: dict[str, Any], expected: dict[str, int]) -> None:
    model = network()
    pruner = Pruner(model, {"amount": 5} | settings | ONE_SHOT, 1)
    pruner.start()
    assert removed(model) == expected
    report = pruner.report()
    assert report.chosen == report.due and report.requested == pytest.approx(report.chosen / report.choices)
    assert pruner.sparsity == pytest.approx(report.requested)


def test_an_amount_in_total_and_over_time() -> None:
    model = network()
    pruner = Pruner(model, {"amount": 40, "scope": "global", "schedule": "linear", "end": "4it", "every": "1it"}, 4)
    counts = []
    for _ in range(4):
        pruner.step()
        counts.append(sum(removed(model).values()))
    assert counts == [10, 20, 30, 40]
    model = network()
    rounds = {"criterion": {"name": "magnitude", "rounds": 4}, "scope": "global", "amount": 41}
    Pruner(model, rounds | ONE_SHOT, 1).start()
    assert sum(removed(model).values()) == 41


def test_an_amount_of_coupled_units_and_through_a_union() -> None:
    model, x = network(), torch.randn(2, 6)
    Pruner(model, {"amount": 2, "granularity": "unit"} | ONE_SHOT, 1, example_input=x).start()
    assert removed(model)["0.weight"] == 12 and removed(model)["3.weight"] == 16 and removed(model)["5.weight"] == 0
    model = network()
    cyclic = {"amount": 9, "schedule": {"name": "cyclic", "cycles": 3}, "after_cycles": "union", "end": 1.0}
    pruner = Pruner(model, cyclic | {"every": "1it"}, 30)
    for _ in range(30):
        pruner.step()
    assert set(removed(model).values()) == {9}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"amount": 5, "sparsity": 0.5}, "either 'sparsity', a fraction, or 'amount', a number"),
        ({"amount": 5, "scope": "erk"}, "'amount' with scope erk makes no sense"),
        ({"amount": 5, "granularity": "2:4"}, "2:4 fixes how many are removed"),
        ({"amount": -1}, "-1 is no amount"),
        ({"amount": 25}, "pruning.amount: 25 are to go from 5.weight, which has 24"),
        ({"amount": 7, "scope": "filter"}, "7 are to go from each output unit of 0.weight, which has 6"),
        ({"amount": 121, "scope": "global"}, "121 are to go from all weights together, which has 120"),
        ({"amount": 5, "granularity": "unit"}, "5 are to go from 5.weight, which has 4"),
    ],
)
def test_amounts_that_make_no_sense(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(SparsifyError, match=match):
        Pruner(network(), settings, 1)


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize("granularity", ["unit", "1x2", "2x2", "2:4", "weight"])
def test_without_regrowth_what_is_left_is_scored(granularity: str, scope: str) -> None:
    if granularity == "2:4" and scope != "layer":
        pytest.skip("n:m holds in every group of a layer")
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False))
    convert(model)
    generator = torch.Generator().manual_seed(3)
    masks = {name: torch.rand(mask.shape, generator=generator) < 0.6 for name, mask in get_masks(model).items()}
    with torch.no_grad():  # what is gone is large
        for name, mask in masks.items():
            model.get_parameter(name).copy_(torch.where(mask, torch.rand(mask.shape, generator=generator), 100.0))
    set_masks(model, masks)
    plain = fold(model)
    convert(plain)
    settings: dict[str, Any] = {"granularity": granularity, "scope": scope, "regrow": False, **ONE_SHOT}
    settings |= {} if granularity == "2:4" else {"sparsity": 0.5}
    for pruned in (model, plain):
        Pruner(pruned, settings, 1).start()
    for name, mask in get_masks(model).items():
        assert torch.equal(mask, get_masks(plain)[name] & masks[name])


@pytest.mark.parametrize("scope", ["layer", "filter", "erk", "global"])
@pytest.mark.parametrize("granularity", ["weight", "unit", "1x2", "2:4", "coupled"])
@pytest.mark.parametrize("value", [float("nan")])
def test_a_score_of_nan_changes_no_mask(scope: str, granularity: str, value: float) -> None:
    if (granularity in ("unit", "coupled") and scope == "filter") or (granularity == "2:4" and scope != "layer"):
        pytest.skip("refused")
    model = network()
    settings: dict[str, Any] = {"scope": scope, "granularity": granularity.replace("coupled", "unit"), **ONE_SHOT}
    settings |= {} if granularity == "2:4" else {"sparsity": 0.5}
    example = torch.randn(2, 6) if granularity == "coupled" else None
    pruner = Pruner(model, settings, 1, example_input=example)
    before = {name: mask.clone() for name, mask in get_masks(model).items()}
    name = "3.weight" if granularity == "coupled" else "5.weight"  # outputs are no unit of a group
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = value
    with pytest.raises(SparsifyError, match=f"{name}: a score is NaN"):
        pruner.start()
    assert all(torch.equal(mask, before[name]) for name, mask in get_masks(model).items())


@pytest.mark.parametrize("scope", ["layer", "filter"])
def test_a_score_of_nan_is_refused_where_nothing_goes(scope: str) -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2, bias=False))
    convert(model)
    rules = [{"match": "2.weight", "sparsity": 0.01}]  # of 40 entries of a row, and of 80, none
    pruner = Pruner(model, {"scope": scope, "sparsity": 0.5, "rules": rules} | ONE_SHOT, 1)
    with torch.no_grad():
        model[2].weight[1, 3] = float("nan")
    with pytest.raises(SparsifyError, match=r"2\.weight: a score is NaN"):
        pruner.start()
    assert not any(removed(model).values())


def test_a_criterion_that_fails_in_a_later_round_changes_no_mask() -> None:
    calls = []

    def criterion(weights: dict[str, Tensor], context: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return {name: weight.abs() for name, weight in weights.items()}

    model = network()
    settings = {"criterion": {"function": criterion, "name": "own", "rounds": 4}, "sparsity": 0.5}
    with pytest.raises(KeyboardInterrupt):
        Pruner(model, settings | ONE_SHOT, 1).start()
    assert not any(removed(model).values())


@needs_data
def taylor(weights: dict[str, Tensor], context: Any) -> dict[str, Tensor]:
    """|w * dL/dw|, as someone may write it who knows nothing of `preserve_state`."""
    for batch in context.batches:
        context.loss_fn(context.model, batch).backward()
    torch.rand(3)
    return {name: (w * context.model.get_parameter(name).grad).abs() for name, w in weights.items()}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_criterion_may_call_backward(frozen: bool) -> None:
    model = network().train()
    model[1].eval()
    model[0].weight.requires_grad_(not frozen)
    model[3].weight.grad = torch.ones(6, 8)
    batches = [(torch.randn(9, 6), torch.randint(4, (9,))) for _ in range(2)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if not name.endswith("_mask")}
    random = torch.get_rng_state()
    pruner = Pruner(model, {"criterion": taylor, "sparsity": 0.5} | ONE_SHOT, 1)
    with pytest.raises(SparsifyError, match="criterion 'taylor' needs data"):
        pruner.start()
    pruner.start(batches, cross_entropy)
    assert torch.equal(torch.get_rng_state(), random)
    reference = network()
    reference.load_state_dict({name: p for name, p in model.state_dict().items() if not name.endswith("_mask")})
    reference[1].eval()
    sum(cross_entropy(reference(x), y) for x, y in batches).backward()  # type: ignore[union-attr]
    for name, mask in get_masks(model).items():
        score = (reference.get_parameter(name) * reference.get_parameter(name).grad).abs().detach()
        assert score[mask].min() >= score[~mask].max()
    assert torch.equal(model[3].weight.grad, torch.ones(6, 8)) and model[5].weight.grad is None
    assert model[0].weight.requires_grad is not frozen and not model[1].training and model[0].training
    assert all(torch.equal(buffer, dict(model.named_buffers())[name]) for name, buffer in buffers.items())


def test_a_criterion_may_call_backward_in_inference_mode() -> None:
    model = network()
    batches = [(torch.randn(9, 6), torch.randint(4, (9,)))]
    with torch.inference_mode():
        Pruner(model, {"criterion": taylor, "sparsity": 0.5} | ONE_SHOT, 1).start(batches, cross_entropy)
    assert all(removed(model).values())
    model(torch.randn(9, 6)).sum().backward()


@pytest.mark.parametrize(
    "scores, kind", [(lambda w: w.to_sparse(), "sparse_coo"), (lambda w: w.to(torch.complex64), "complex64")]
)
def test_scores_that_cannot_be_compared_are_refused(scores: Any, kind: str) -> None:
    model = network()
    pruner = Pruner(model, {"criterion": lambda w, c: {n: scores(v) for n, v in w.items()}, "sparsity": 0.5}, 1)
    with pytest.raises(SparsifyError, match=f"with real numbers, not a {kind} tensor"):
        pruner.start()
    assert not any(removed(model).values())


def test_a_schedule_that_was_cut_short_or_overrun_is_told(tmp_path: Any) -> None:
    model = network()
    ramp = {"sparsity": 0.5, "schedule": "linear", "end": "8it", "every": "2it"}
    pruner = Pruner(model, ramp, 10)
    save(model, tmp_path / "a.safetensors")  # not begun
    for _ in range(5):
        pruner.step()
    cut = "cut short at step 5: 3 of 5 updates are done, the last is due at step 8"
    with pytest.warns(ScheduleWarning, match=cut):
        assert pruner.report().requested == 0.5
    with pytest.warns(ScheduleWarning, match=cut):
        save(model, tmp_path / "b.safetensors")
    for _ in range(5):
        pruner.step()
    pruner.report()
    save(model, tmp_path / "c.safetensors")
    pruner.step()
    overrun = r"pruner.step\(\) was called 11 times, total_steps is 10: it counts optimiser steps, not micro-batches"
    with pytest.warns(ScheduleWarning, match=overrun):
        pruner.report()
    del pruner
    with pytest.warns(ScheduleWarning, match=overrun):
        sparsify.save(model, tmp_path / "d.safetensors")


def test_each_of_two_pruners_says_that_its_schedule_was_cut_short(tmp_path: Any) -> None:
    model = network()
    one, other = (Pruner(model, LINEAR | {"only": [name]}, 10) for name in ("0.weight", "3.weight"))
    for pruner, steps in ((one, 4), (other, 10)):
        for _ in range(steps):
            pruner.step()
    other.report()
    cut = "cut short at step 4"
    with pytest.warns(ScheduleWarning, match=cut):
        one.report()
    with pytest.warns(ScheduleWarning, match=cut):
        save(model, tmp_path / "a.safetensors")
    again = Pruner(model, {"sparsity": 0.5, "only": ["0.weight"], "schedule": "one_shot"}, 1)  # in the place of `one`
    again.step()
    save(model, tmp_path / "b.safetensors")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.stem = nn.Linear(16, 4), nn.Linear(16, 16), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.stem(x)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [("last", "stem"), ("first", "last"), ("name:last", "last"), ("name:first", "first"), ("name:ste*", "stem")],
)
def test_keywords_and_modules_of_those_names(pattern: str, ignored: str) -> None:
    report = convert(Named(), ignore=[pattern])
    assert report.skipped == {f"{ignored}.weight": f"ignored by '{pattern}'"}
    clash = f"ignore: '{pattern}' is the keyword, here {ignored}.weight; the module of that name is 'name:{pattern}'"
    assert report.notes == ([] if pattern.startswith("name:") else [clash])
    model = Named()
    convert(model)
    pruner = Pruner(model, {"sparsity": 0.5, "ignore": pattern} | ONE_SHOT, 1)
    assert f"{ignored}.weight" not in pruner.names
    assert [note for note in pruner.report().notes if note.startswith("ignore")] == report.notes
