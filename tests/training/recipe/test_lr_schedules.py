import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sparsify.errors import SparsifyError
from sparsify.training.recipe.lr_schedules import LR_SCHEDULES, LrSchedule, learning_rate_factor

ADAPTER: TypeAdapter[Any] = TypeAdapter(LrSchedule)


def factors(settings: dict[str, Any], total: int, steps_per_epoch: int = 1) -> list[float]:
    factor = learning_rate_factor(ADAPTER.validate_python(settings), total, steps_per_epoch)
    return [factor(step) for step in range(total + 1)]


def test_constant_stays_at_one() -> None:
    assert factors({"name": "constant"}, 4) == [1.0] * 5


def test_warmup_rises_in_a_line_and_then_leaves_the_schedule_alone() -> None:
    assert factors({"name": "constant", "warmup": "4it"}, 8) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_starts_each_cycle_at_one_and_ends_training_at_final() -> None:
    values = factors({"name": "cosine", "cycles": 2, "final": 0.5}, 8)
    half = math.sqrt(0.5) / 2 * 0.5
    assert values == pytest.approx([1, 0.75 + half, 0.75, 0.75 - half, 1, 0.75 + half, 0.75, 0.75 - half, 0.5])


def test_cosine_restarts_on_the_exact_step_where_floats_would_not() -> None:
    # 49 * (1 / 49) is less than 1 in floats.
    values = factors({"name": "cosine", "cycles": 49}, 49 * 3)
    assert [step for step, value in enumerate(values[:-1]) if value == 1.0] == list(range(0, 147, 3))


def test_step_multiplies_at_the_moments_given() -> None:
    settings = {"name": "step", "at": ["2ep", 0.75], "factor": 0.5}
    assert factors(settings, 8, steps_per_epoch=2) == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_triangle_goes_up_and_down_from_its_phase() -> None:
    settings = {"name": "triangular", "up": "2it", "down": "4it"}
    assert factors(settings, 8) == [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0.5, 1]
    assert factors({**settings, "phase": "2it"}, 8) == [1, 0.75, 0.5, 0.25, 0, 0.5, 1, 0.75, 0.5]
    assert factors({**settings, "low": 0.5}, 3) == [0.5, 0.75, 1, 0.875]


def test_triangle_of_the_study_has_its_corners_and_its_end() -> None:
    # 200 epochs of 391 batches; corners at multiples of 5,000, the last step of 78,200 still at 0.36 of the peak.
    values = factors({"name": "triangular", "up": "5000it", "down": "5000it"}, 78_200, 391)
    assert [step for step, value in enumerate(values) if value == 1.0] == list(range(5_000, 78_200, 10_000))
    assert [step for step, value in enumerate(values) if value == 0.0] == list(range(0, 78_200, 10_000))
    assert 0.1 * values[78_200] == pytest.approx(0.036)


def test_baseline_of_the_study_is_constant_linear_constant() -> None:
    settings = {"name": "constant_linear_constant", "begin": 0.5, "end": 0.9, "final": 0.01}
    expected = [1, 1, 1, 1, 1, 1, 0.7525, 0.505, 0.2575, 0.01, 0.01]
    assert factors(settings, 10) == pytest.approx(expected)


def test_line_of_no_length_is_a_step() -> None:
    settings = {"name": "constant_linear_constant", "begin": 0.5, "end": 0.5, "final": 0.1}
    assert factors(settings, 4) == [1, 1, 1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "triangular", "up": 0.0, "down": "0it"}, "has no length"),
        ({"name": "constant_linear_constant", "begin": 0.9, "end": "5it"}, r"begin \(0.9\) comes after end \(5it\)"),
    ],
)
def test_impossible_times_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        factors(settings, 10)


@pytest.mark.parametrize("name", sorted(LR_SCHEDULES))
@given(total=st.integers(1, 500), warmup=st.integers(0, 1000).map(lambda parts: parts / 1000))
def test_every_schedule_stays_between_zero_and_one(name: str, total: int, warmup: float) -> None:
    values = factors({"name": name, "warmup": warmup}, total)
    assert all(0 <= value <= 1 for value in values)


def test_every_schedule_can_be_named_in_a_recipe() -> None:
    assert {ADAPTER.validate_python({"name": name}).name for name in LR_SCHEDULES} == set(LR_SCHEDULES)
