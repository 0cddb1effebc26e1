"""summary(): counts against a count by hand, and the sizes of files that are really written."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify.formats.file.inspection import inspect_file
from sparsify.pruning.pruner import Pruner


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))


def test_a_summary_counts_parameters_multiply_adds_and_bytes(tmp_path: Path) -> None:
    model = network()
    sparsify.convert(model)
    masks = sparsify.get_masks(model)
    masks["0.weight"][2:] = False
    masks["3.weight"].view(-1)[::4] = False
    found = sparsify.summary(model, torch.zeros(2, 3, 6, 6))
    conv, linear = found.layers
    assert (conv.kept, linear.kept) == (54, 480) and conv.sparsity == 0.75
    # Two images, 16 positions each.
    assert (conv.multiply_adds, conv.kept_multiply_adds) == (2 * 16 * 216, 2 * 16 * 54)
    assert (linear.multiply_adds, linear.kept_multiply_adds) == (2 * 640, 2 * 480)
    assert found.multiply_adds == 2 * (16 * 216 + 640) and found.kept_multiply_adds == 2 * (16 * 54 + 480)
    assert found.parameters == 216 + 8 + 16 + 645 and found.kept_parameters == found.parameters - 162 - 160
    assert found.sparsity == pytest.approx((162 + 160) / 856)
    sparsify.save(model, tmp_path / "model.safetensors")
    saved = inspect_file(tmp_path / "model.safetensors")
    assert found.file_bytes == sum(row.bytes_stored for row in saved.rows)
    assert found.dense_bytes == saved.bytes_dense
    text = str(found)
    assert "0.weight  8x3x3x3    54    75.0 %" in text and "multiply-adds: 2,688 of 8,192 kept" in text
    read = json.loads(json.dumps(found.to_dict()))
    assert read["layers"][0]["sparsity"] == 0.75 and read["sparsity"] == found.sparsity and read["uncounted"] == []


def test_without_an_example_or_masks_what_is_known_is_told() -> None:
    model = network()
    found = sparsify.summary(model)
    assert found.layers == () and found.multiply_adds is None and found.sparsity == 0
    assert str(found).startswith("no weight carries a mask") and "multiply-adds" not in str(found)
    sparsify.convert(model)
    assert sparsify.summary(model).file_bytes >= found.dense_bytes


def test_a_printed_report_shows_the_table_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    sparsify.convert(model)
    pruner = Pruner(model, {"sparsity": 0.5}, 1)
    pruner.start()
    print(pruner.report())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "shape", "kept", "sparsity"]
    assert lines[1].split() == ["0.weight", "8x3x3x3", "108", "50.0", "%"]
    assert lines[3] == "sparsity 50.0 %, 50.0 % requested: 428 of 856 pruned weights removed"
