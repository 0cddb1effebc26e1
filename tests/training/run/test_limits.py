"""Runs that are cut short: by steps, and by images."""

from pathlib import Path
from typing import Any

import pytest

from sparsify.training.data.image_files import spread
from sparsify.training.recipe.settings import TrainSettings
from sparsify.training.run.train import train


def test_the_steps_are_those_of_the_epochs_or_fewer() -> None:
    assert [TrainSettings(epochs=3, max_steps=most).total_steps(4) for most in (None, 5, 50)] == [12, 5, 12]


def test_a_run_ends_with_an_evaluation_after_its_last_step(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    recipe = {
        "model": "timm:test_resnet",
        "data": {"name": "digits", "limit": 60, "batch_size": 30},
        "train": {"epochs": 9, "max_steps": 3, "log_every": 100, "device": "cpu"},
        "prune": {"sparsity": 0.5, "schedule": "linear", "end": 1.0, "every": "1it"},
    }
    result = train(recipe, out=tmp_path / "run", check=False, on_record=records.append)
    assert [record["step"] for record in records] == [2, 3]
    assert "test_accuracy" in records[-1] and result.report is not None
    assert result.report.removed == result.report.due


@pytest.mark.parametrize(
    ("limit", "wanted"), [(None, [0, 1, 2, 3, 4, 5]), (3, [0, 2, 4]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_limited_images_are_spread_over_the_set(limit: int | None, wanted: list[int]) -> None:
    assert spread(6, limit) == wanted
