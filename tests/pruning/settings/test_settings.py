"""The prune section: what it accepts, what it means, and the one line that a mistake gets."""

import re
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest

from sparsify.errors import SparsifyError
from sparsify.pruning.settings.exact import exact
from sparsify.pruning.settings.prune import Pruning, parse_pruning, parse_time, steps_in

CYCLIC = {"name": "cyclic", "cycles": 4}


def test_settings_and_schedules_need_no_torch() -> None:
    code = "import sys, sparsify.pruning.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_alone_is_short_for_a_section_with_that_name() -> None:
    short = parse_pruning({"sparsity": 0.9, "criterion": "snip", "granularity": "unit", "schedule": "cubic"})
    long = {"sparsity": 0.9, "criterion": {"name": "snip"}, "granularity": {"name": "unit"}}
    assert short == parse_pruning(long | {"schedule": {"name": "cubic"}})


def test_settings_survive_their_own_dump() -> None:
    pruning = parse_pruning(
        {"sparsity": 0.9, "ignore": "last", "schedule": CYCLIC | {"ramp": "half"}, "every": "10it"}
        | {"begin": 0, "end": "20ep", "after_cycles": "union", "regrow": "before_union", "masked_weights": "zero"}
    )
    assert pruning.ignore == ("last",)
    assert parse_pruning(pruning.model_dump(mode="json")) == pruning


def test_patterns_and_sizes_of_blocks_have_short_forms() -> None:
    short = [parse_pruning({"sparsity": 0.5, "granularity": form}) for form in ("2:4", "4x1")]
    long = [{"name": "n:m", "n": 2, "m": 4}, {"name": "block", "size": [4, 1]}]
    assert short == [parse_pruning({"sparsity": 0.5, "granularity": form}) for form in long]
    assert [pruning.granularity.short for pruning in short] == ["2:4", "4x1"]
    assert all(parse_pruning(pruning.model_dump(mode="json")) == pruning for pruning in short)


def test_a_pattern_tells_the_sparsity() -> None:
    for settings in ({}, {"sparsity": 2 / 3}, {"sparsity": 0.67}):
        assert parse_pruning({"granularity": "1:3"} | settings).target == Fraction(2, 3)
    assert parse_pruning({"granularity": {"name": "n:m", "n": 7, "m": 8}}).sparsity == 0.125
    assert parse_pruning({"sparsity": 0.67}).target == Fraction(67, 100)


def test_a_function_is_a_criterion_under_its_own_name() -> None:
    pruning = parse_pruning({"sparsity": 0.5, "criterion": max})
    assert pruning.criterion.function is max
    assert pruning.model_dump(mode="json")["criterion"] == {
        "name": "max",
        "temperature": None,
        "rounds": None,
        "per": None,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.5}, "pruning.sparsity: 1.5 is no sparsity; it is the fraction removed, in [0, 1]"),
        ({"sparsity": True}, "pruning.sparsity: True is no sparsity"),
        ({"sparsity": float("nan")}, "pruning.sparsity: nan is no sparsity"),
        ({}, "pruning.sparsity: missing key"),
        ({"sparsity": None}, "pruning.sparsity: missing key"),
        ({"sparsty": 0.5}, "pruning.sparsty: unknown key; did you mean 'sparsity'?"),
        ({"sparsity": 0.5, "schedul": "linear"}, "pruning.schedul: unknown key; did you mean 'schedule'?"),
        ({"sparsity": 0.5, "schedule": {"name": "cyclic", "cycels": 3}}, "schedule.cycels: unknown key; did you mean"),
        (
            {"sparsity": 0.5, "criterion": {"name": "snip", "temperature": 2}},
            "'temperature' belongs to criterion grasp, not to snip",
        ),
        ({"sparsity": 0.5, "criterion": {"name": "grasp", "temperature": 0}}, "criterion.temperature: should be"),
        ({"sparsity": 0.5, "criterion": {"name": "synflow", "rounds": 0}}, "criterion.rounds: should be greater"),
        (
            {"sparsity": 0.5, "criterion": {"name": "snip", "rounds": 5}, "schedule": "linear"},
            "'criterion.rounds' belongs to schedule one_shot; with linear every update is one round",
        ),
        (
            {"sparsity": 0.5, "criterion": {"name": "snip", "per": "flops"}},
            "'criterion.per' belongs to granularity unit, not to weight",
        ),
        (
            {"sparsity": 0.5, "criterion": {"name": "snip", "per": "flop"}, "granularity": "unit"},
            "criterion.per: should be 'flops', 'parameters' or 'milliseconds'",
        ),
        ({"sparsity": 0.5, "of": "flops", "scope": "global"}, "'of' belongs to granularity unit, not to weight"),
        ({"sparsity": 0.5, "of": "flops", "granularity": "unit"}, "'of: flops' needs scope global"),
        (
            {"sparsity": 0.5, "granularity": {"name": "weight", "aggregate": "l2"}},
            "granularity: 'aggregate' belongs to granularity unit, not to weight",
        ),
        (
            {"sparsity": 0.5, "granularity": {"name": "weight", "heads": "size"}},
            "granularity: 'heads' belongs to granularity unit, not to weight",
        ),
        (
            {"sparsity": 0.5, "granularity": {"name": "unit", "heads": "sizes"}},
            "granularity.heads: should be 'whole' or 'size'",
        ),
        ({"sparsity": 0.5, "granularity": {"name": "unit", "aggregat": "l2"}}, "did you mean 'aggregate'?"),
        ({"sparsity": 0.5, "shrink": "yes"}, "pruning.shrink: should be a valid boolean"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, "unknown criterion 'magnitud'; did you mean 'magnitude'?"),
        ({"sparsity": 0.5, "scope": "glob"}, "unknown scope 'glob'; did you mean 'global'?"),
        ({"sparsity": 0.5, "granularity": "units"}, "unknown granularity 'units'; did you mean 'unit'?"),
        ({"sparsity": 0.5, "granularity": "unit", "scope": "filter"}, "a unit is a filter"),
        (
            {"granularity": "n:m"},
            "granularity n:m needs n and m, {name: 'n:m', n: 2, m: 4} or in short '2:4'",
        ),
        ({"granularity": {"name": "n:m", "n": 2}}, "granularity n:m needs n and m"),
        ({"granularity": {"name": "n:m", "n": "2", "m": 4}}, "granularity.n: should be a valid integer"),
        ({"granularity": "4:2"}, "4:2 removes nothing: n of each m are kept, so n is less than m; did you mean 2:4?"),
        ({"granularity": "4:4"}, "4:4 removes nothing: n of each m are kept, so n is less than m"),
        ({"granularity": "0:4"}, "pruning.granularity: should be greater than or equal to 1; given '0:4'"),
        ({"granularity": "2:4", "sparsity": 0.9}, "granularity 2:4 removes 0.5, not 0.9; leave 'sparsity' out"),
        ({"granularity": "1:3", "sparsity": 0.66}, "granularity 1:3 removes 0.6667, not 0.66; leave 'sparsity' out"),
        (
            {"granularity": "2:4", "scope": "global"},
            "holds in every group of a layer, not in scope 'global'",
        ),
        ({"granularity": {"name": "n:m", "n": 2, "k": 4}}, "granularity.k: unknown key"),
        ({"granularity": {"name": "weight", "m": 4}}, "'m' belongs to granularity n:m, not to weight"),
        (
            {"granularity": "block", "sparsity": 0.5},
            "granularity block needs a size, {name: block, size: [4, 1]} or",
        ),
        ({"granularity": "4x", "sparsity": 0.5}, "unknown granularity '4x'"),
        (
            {"granularity": "0x4", "sparsity": 0.5},
            "pruning.granularity: (0, 4) is no block size; it is rows by columns",
        ),
        ({"granularity": {"name": "block", "size": 4}, "sparsity": 0.5}, "granularity.size: 4 is no block size"),
        ({"granularity": {"name": "block", "size": [4, 1, 1]}, "sparsity": 0.5}, "[4, 1, 1] is no block size"),
        ({"granularity": {"name": "unit", "size": [4, 1]}, "sparsity": 0.5}, "'size' belongs to granularity block"),
        ({"granularity": "4x1"}, "pruning.sparsity: missing key"),
        ({"sparsity": 0.5, "schedule": {"name": "linear", "cycles": 3}}, "'cycles' belongs to schedule cyclic"),
        ({"sparsity": 0.5, "schedule": "cyclic"}, "takes either 'cycles' (their number) or 'cycle_length'"),
        ({"sparsity": 0.5, "schedule": CYCLIC | {"ramp": "full"}}, "4 given, 3 or 5 would do"),
        ({"sparsity": 0.5, "schedule": CYCLIC | {"cycles": 0}}, "schedule.cycles"),
        ({"sparsity": 0.5, "schedule": CYCLIC | {"cycles": 1}, "after_cycles": "union"}, "at least 2 cycles"),
        ({"sparsity": 0.5, "after_cycles": "union"}, "'after_cycles' belongs to schedule cyclic, not to one_shot"),
        ({"sparsity": 0.5, "end": 0.5}, "leave 'end' out"),
        ({"sparsity": 0.5, "regrow": "before_union"}, "needs 'after_cycles: union'"),
        ({"sparsity": 0.5, "schedule": {"name": "cyclic", "cycles": 3, "ramp": "full"}, "regrow": False}, "comes down"),
        ({"sparsity": 0.5, "begin": 5000}, "5000 is no time;"),
        ({"sparsity": 0.5, "begin": "20epochs"}, "'20epochs' is no time;"),
        ({"sparsity": 0.5, "masked_weights": "keep"}, "'decay', 'freeze' or 'zero'"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError) as caught:
        parse_pruning(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_something_that_is_no_section_is_refused() -> None:
    with pytest.raises(SparsifyError, match="expected settings or a dict"):
        parse_pruning(0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", [0.29, 0.95, 1e-05, 0.1, 1.0, 0.0])
def test_a_sparsity_is_the_decimal_that_was_written(written: float) -> None:
    assert exact(written) == Fraction(str(written))


def test_twenty_nine_per_cent_of_a_hundred_is_twenty_nine() -> None:
    assert int(0.29 * 100) == 28
    assert exact(0.29) * 100 == 29


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        (0.95, 74_290),
        (0, 0),
        (1, 78_200),
        ("20ep", 7_820),
        ("0.5ep", 196),
        ("5000it", 5_000),
        (0.005, 391),
        ("0.5", 39_100),
    ],
)
def test_times_become_whole_steps(written: float | str, steps: int) -> None:
    assert steps_in(written, 78_200, 391) == steps


def test_half_a_step_rounds_up() -> None:
    assert [steps_in(0.5, total) for total in (1, 3, 5)] == [1, 2, 3]


@pytest.mark.parametrize("wrong", [1.5, -0.1, True, "2.5it", "it", "", "nan", "0x10", None, float("inf")])
def test_what_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time(wrong)


def test_epochs_need_the_length_of_an_epoch() -> None:
    with pytest.raises(SparsifyError, match="prune.end: '20ep' counts epochs, so steps_per_epoch is needed"):
        steps_in("20ep", 1000, where="prune.end")


def test_the_schema_offers_short_forms_and_names() -> None:
    schema = Pruning.model_json_schema()
    short, long = schema["$defs"]["Schedule"]["anyOf"]
    assert short["enum"] == ["one_shot", "linear", "cubic", "constant", "cyclic"]
    assert set(long["properties"]) == {"name", "initial_sparsity", "ramp", "cycles", "cycle_length"}
    assert "function" not in schema["$defs"]["CriterionSettings"]["anyOf"][1]["properties"]
    assert all("description" in entry for entry in schema["properties"].values())
    *_, pattern = schema["$defs"]["GranularitySettings"]["anyOf"]
    assert all(re.fullmatch(pattern["pattern"], form) for form in ("2:4", "16x16"))
    assert schema["anyOf"] == [{"required": [key]} for key in ("sparsity", "amount", "granularity")]
