"""What TensorBoard reads of a run, beside what the run's files say."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

import sparsify
from sparsify.overlap import iou
from sparsify.training.records.tensorboard import hyperparameters
from sparsify.training.run.train import train
from tests.report.conftest import RECIPE


def test_layers_hyperparameters_and_overlap_are_there(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(RECIPE, out=tmp_path / "run", check=False)
    events = accumulator.EventAccumulator(str(result.folder)).Reload()
    tags = events.Tags()
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    tested = [record["step"] for record in records if "test_accuracy" in record]
    for name, mask in sparsify.get_masks(result.model).items():
        points = events.Scalars(f"layer_sparsity/{name}")
        assert [point.step for point in points] == tested
        assert points[-1].value == pytest.approx(1 - int(mask.sum()) / mask.numel())
    masks = [sparsify.load_masks(result.folder / "masks" / f"cycle-{number}.safetensors") for number in (1, 2, 3)]
    points = events.Scalars("mask_overlap/with_the_cycle_before")
    assert [point.value for point in points] == [pytest.approx(iou(*pair)) for pair in pairwise(masks)]
    assert "recipe/text_summary" in tags["tensors"]
    about = events.summary_metadata["_hparams_/session_start_info"]
    assert b"prune.scope" in about.plugin_data.content and b"filter" in about.plugin_data.content


def test_hyperparameters_are_what_is_set(tmp_path: Path) -> None:
    found = hyperparameters(sparsify.Recipe(**RECIPE))
    assert found["train.optimizer.lr"] == 0.05 and found["prune.schedule.cycles"] == 3 and found["name"] == "small"
    assert "model.checkpoint" not in found and found["prune.ignore"] == "['last']"
    assert all(isinstance(value, bool | int | float | str) for value in found.values())
