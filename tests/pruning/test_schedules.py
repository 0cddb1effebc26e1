"""When masks change and to what: curves, cycles, and the plans of the study."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from sparsify.errors import SparsifyError
from sparsify.pruning.schedules import Update, curve, update_plan
from sparsify.pruning.settings.curves import cubic, cyclic, linear
from sparsify.pruning.settings.prune import Pruning, parse_pruning

TENTH, HALF = Fraction(1, 10), Fraction(1, 2)


def settings(**given: Any) -> Pruning:
    return parse_pruning({"sparsity": 0.9} | given)


def due(pruning: Pruning, total_steps: int) -> list[tuple[int, float | None, str]]:
    updates = update_plan(pruning, total_steps)
    return [(u.step, None if u.sparsity is None else round(float(u.sparsity), 6), u.event) for u in updates]


def test_linear_goes_straight_from_the_initial_sparsity() -> None:
    pruning = settings(schedule={"name": "linear", "initial_sparsity": 0.3})
    assert [linear(Fraction(t, 3), pruning) for t in range(4)] == [3 * TENTH, 5 * TENTH, 7 * TENTH, 9 * TENTH]


def test_cubic_is_equation_1_of_zhu_and_gupta() -> None:
    pruning = settings(schedule={"name": "cubic", "initial_sparsity": 0.1})
    assert cubic(HALF, pruning) == Fraction("0.9") + (Fraction("0.1") - Fraction("0.9")) / 8
    assert (cubic(Fraction(0), pruning), cubic(Fraction(1), pruning)) == (TENTH, 9 * TENTH)


@tuned(deadline=None)
@given(st.fractions(0, 7), st.sampled_from(["half", "full"]))
def test_cyclic_is_the_sine_of_the_cycles_elapsed(u: Fraction, ramp: str) -> None:
    pruning = settings(schedule={"name": "cyclic", "cycles": 7, "ramp": ramp})
    inner = float(u) if ramp == "full" else float(u % 1 or (1 if u else 0))
    assert float(cyclic(u, pruning)) == pytest.approx(0.9 * abs(math.sin(math.pi / 2 * inner)), abs=1e-11)


def test_a_third_of_a_cycle_is_exactly_half_the_sparsity() -> None:
    assert cyclic(Fraction(1, 3), settings(schedule={"name": "cyclic", "cycles": 2})) == Fraction("0.45")


def test_one_shot_is_one_update_at_begin() -> None:
    assert due(settings(), 100) == [(0, 0.9, "update")]
    assert due(settings(begin=0.25), 100) == [(25, 0.9, "update")]
    assert due(settings(), 0) == [(0, 0.9, "update")]


def test_any_schedule_whose_end_is_its_begin_jumps_to_the_target() -> None:
    assert due(settings(schedule="linear", begin="5it", end="5it"), 10) == [(5, 0.9, "update")]


def test_updates_fall_on_multiples_of_every_and_on_the_end() -> None:
    pruning = settings(schedule="linear", begin="3it", end="25it", every="10it")
    assert due(pruning, 30) == [
        (3, 0.0, "update"),
        (10, 0.286364, "update"),
        (20, 0.695455, "update"),
        (25, 0.9, "update"),
    ]


def test_an_interval_longer_than_a_cycle_leaves_the_ends_of_cycles() -> None:
    pruning = settings(schedule={"name": "cyclic", "cycles": 2}, end=1, every="1000it")
    assert due(pruning, 10) == [(0, 0.0, "reset"), (5, 0.9, "update"), (5, 0.0, "reset"), (10, 0.9, "update")]


def test_union_saves_and_resets_at_the_ends_and_prunes_the_union_in_the_last_cycle() -> None:
    pruning = settings(schedule={"name": "cyclic", "cycles": 3}, end=0.6, every="1000it", after_cycles="union")
    assert due(pruning, 10) == [
        (0, 0.0, "reset"),
        (2, 0.9, "save"),
        (2, 0.0, "reset"),
        (4, 0.9, "save"),
        (4, None, "union"),
        (6, None, "update"),
    ]


def test_full_ramp_saves_at_its_peaks_and_comes_down() -> None:
    pruning = settings(
        schedule={"name": "cyclic", "cycles": 3, "ramp": "full"}, end=1, every="2it", after_cycles="union"
    )
    root = round(0.9 * math.sqrt(0.5), 6)
    assert due(pruning, 12) == [
        (0, 0.0, "reset"),
        (2, root, "update"),
        (4, 0.9, "save"),
        (6, root, "update"),
        (8, 0.0, "update"),
        (8, None, "union"),
        (10, None, "update"),
        (12, None, "update"),
    ]


STUDY = settings(
    sparsity=0.98,
    scope="filter",
    schedule={"name": "cyclic", "ramp": "half", "cycle_length": "5000it"},
    end=0.95,
    every="100it",
    after_cycles="union",
    regrow="before_union",
)


def test_the_study_resets_at_multiples_of_its_cycle_and_prunes_the_union_from_69290_to_74290() -> None:
    updates = update_plan(STUDY, 78_200)
    assert [u.step for u in updates if u.event == "save"] == list(range(5_000, 65_001, 5_000))
    assert [u.step for u in updates if u.event == "reset"] == list(range(0, 65_001, 5_000))
    assert [u.step for u in updates if u.event == "union"] == [69_290]
    assert [u.step for u in updates if u.cycle == 15] == [69_290, *range(69_300, 74_290, 100), 74_290]
    # The cycle that the last one cuts off goes on up to its beginning, and is not saved.
    assert [u.step for u in updates if u.cycle == 14] == [65_000, *range(65_100, 69_290, 100)]
    assert updates[-1] == Update(74_290, None, 15, "update", Fraction(1))


def test_the_study_ramps_within_a_cycle_by_the_steps_since_a_multiple_of_its_length() -> None:
    sparsity = {
        u.step: float(u.sparsity) for u in update_plan(STUDY, 78_200) if u.sparsity is not None and u.event == "update"
    }
    for step in (100, 4_900, 5_100, 33_300, 69_200):
        assert sparsity[step] == pytest.approx(0.98 * math.sin(math.pi / 2 * (step % 5_000) / 5_000), abs=1e-11)


def test_the_study_baseline_is_linear_over_the_first_half() -> None:
    updates = update_plan(settings(schedule="linear", end=0.5, every="100it"), 78_200)
    assert [u.step for u in updates] == list(range(0, 39_101, 100))
    assert all(u.sparsity == Fraction("0.9") * u.step / 39_100 for u in updates)


@tuned(deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 200),
    st.integers(1, 60),
    st.one_of(st.integers(1, 9), st.integers(1, 40).map(lambda length: f"{length}it")),
    st.sampled_from([None, "union"]),
    st.sampled_from(["half", "full"]),
)
def test_any_plan_that_is_accepted_is_in_order_and_ends_at_the_target(
    begin: int, steps: int, every: int, cycle: int | str, after: str | None, ramp: str
) -> None:
    schedule = {"name": "cyclic", "ramp": ramp, "cycle_length" if isinstance(cycle, str) else "cycles": cycle}
    times = {"begin": f"{begin}it", "end": f"{begin + steps}it", "every": f"{every}it"}
    try:
        updates = update_plan(settings(schedule=schedule, after_cycles=after, **times), begin + steps)
    except SparsifyError as error:
        assert "\n" not in str(error)
        return
    assert [u.step for u in updates] == sorted(u.step for u in updates)
    assert (updates[0].step, updates[-1].step, updates[-1].progress) == (begin, begin + steps, Fraction(1))
    assert updates[-1].sparsity == (None if after else Fraction("0.9"))
    assert [u.event for u in updates].count("union") == (1 if after else 0)
    assert not after or any(u.event == "save" for u in updates)
    assert set(range((begin // every + 1) * every, begin + steps, every)) <= {u.step for u in updates}


@pytest.mark.parametrize(
    ("given", "total", "message"),
    [
        (
            {"schedule": "linear", "begin": 0.9, "end": 0.5},
            100,
            "prune.begin: 0.9 is step 90, after the end of pruning",
        ),
        ({"schedule": "linear", "end": "200it"}, 100, "prune.end: '200it' is step 200, but training has 100 steps"),
        ({"begin": "200it"}, 100, "prune.begin: '200it' is step 200, but training has 100 steps"),
        ({"schedule": {"name": "cyclic", "cycles": 4}, "end": 1}, 3, "4 cycles do not fit into 3 steps"),
        ({"schedule": {"name": "cyclic", "cycle_length": 0.001}, "end": 1}, 100, "less than one of the 100 steps"),
        (
            {"schedule": {"name": "cyclic", "cycle_length": "60it"}, "end": 0.5},
            100,
            "50 steps do not hold one cycle of 60",
        ),
        (
            {"schedule": {"name": "cyclic", "cycle_length": "30it"}, "end": 0.5, "after_cycles": "union"},
            100,
            "50 steps do not hold the 2 cycles that a union needs of 30 steps",
        ),
        (
            {"schedule": {"name": "cyclic", "cycle_length": "25it", "ramp": "full"}, "end": 0.5},
            100,
            "ramp 'full' must end on a peak, after an odd number of cycles; 50 steps hold 2 cycles of 25",
        ),
        ({"schedule": "linear", "every": "0it"}, 100, "prune.every: '0it' is no step at all"),
        ({"schedule": "linear", "end": "3ep"}, 100, "steps_per_epoch is needed"),
    ],
)
def test_times_that_do_not_fit_are_one_line(given: dict[str, Any], total: int, message: str) -> None:
    with pytest.raises(SparsifyError) as caught:
        update_plan(settings(**given), total)
    assert message in str(caught.value)


@pytest.mark.parametrize("steps", [0, -3])
def test_an_epoch_without_a_step_is_refused_also_if_no_time_is_in_epochs(steps: int) -> None:
    with pytest.raises(SparsifyError, match=f"^steps_per_epoch is {steps}; an epoch has at least one step$"):
        update_plan(settings(schedule="linear"), 100, steps)


@curve(keys=("initial_sparsity",))
def quadratic(progress: Fraction, pruning: Pruning) -> Fraction:
    return pruning.target * progress**2


@curve(cyclical=True)
def sawtooth(progress: Fraction, pruning: Pruning) -> float:
    return float(pruning.target) * float(progress % 1 or (1 if progress else 0))


def test_a_function_of_the_users_own_is_a_schedule() -> None:
    pruning = settings(schedule=quadratic, end=1, every="5it")
    assert due(pruning, 10) == [(0, 0.0, "update"), (5, 0.225, "update"), (10, 0.9, "update")]
    assert pruning.schedule.name == "quadratic" and not pruning.schedule.cyclical
    assert settings(schedule={"function": quadratic, "initial_sparsity": 0.1}).schedule.initial_sparsity == 0.1


def test_a_cyclical_function_of_the_users_own_has_cycles_and_a_union() -> None:
    pruning = settings(schedule={"function": sawtooth, "cycles": 3}, end=0.6, every="1it", after_cycles="union")
    assert due(pruning, 10) == [
        (0, 0.0, "reset"),
        (1, 0.45, "update"),
        (2, 0.9, "save"),
        (2, 0.0, "reset"),
        (3, 0.45, "update"),
        (4, 0.9, "save"),
        (4, None, "union"),
        (5, None, "update"),
        (6, None, "update"),
    ]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"function": quadratic, "cycles": 3}, "'cycles' belongs to schedule cyclic, not to quadratic"),
        (sawtooth, "a sawtooth schedule takes either 'cycles'"),
        ({"function": quadratic, "name": "linear"}, "'linear' is a schedule already"),
        (lambda progress, pruning: 0.5, "'<lambda>' ends at 0.5, not at the target 0.9"),
        (lambda progress, pruning: progress * 2, r"gives Fraction\(2, 1\) at 1; a sparsity is in \[0, 1\]"),
        (lambda progress, pruning: math.nan, "gives nan"),
    ],
)
def test_a_function_that_is_no_schedule_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        update_plan(settings(schedule=schedule, end=1, every="10it"), 10)
