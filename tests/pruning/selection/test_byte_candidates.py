"""Sparsities of the sparse file's bytes, against files that are really written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.formats.file.inspection import inspect_file
from sparsify.pruning.pruner import Pruner
from sparsify.surgery.mask_state.masks import get_masks

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 16, 40))
    sparsify.convert(model)
    return model


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_the_tensors_of_the_file_are_as_small_as_asked_and_hardly_smaller(
    tmp_path: Path, scope: str, sparsity: float
) -> None:
    model = network()
    pruner = Pruner(model, {"sparsity": sparsity, "of": "bytes", "scope": scope}, 1)
    pruner.start()
    sparsify.save(model, tmp_path / "model.safetensors")
    saved = inspect_file(tmp_path / "model.safetensors")
    stored = sum(row.bytes_stored for row in saved.rows)
    assert stored <= (1 - sparsity) * saved.bytes_dense
    assert scope == "filter" or stored > (1 - sparsity) * saved.bytes_dense - 0.01 * saved.bytes_dense
    report = pruner.report()
    assert report.share == pytest.approx(1 - stored / saved.bytes_dense) and report.chosen == report.due
    assert "of the bytes" in str(report)


def test_a_ramp_without_regrowth_only_removes() -> None:
    model = network()
    pruning = {"sparsity": 0.7, "of": "bytes", "schedule": "linear", "end": "4it", "every": "1it", "regrow": False}
    pruner = Pruner(model, pruning, 4)
    before = get_masks(model)
    for step in range(1, 5):
        before = {name: mask.clone() for name, mask in get_masks(model).items()}
        pruner.step()
        assert all(not (mask & ~before[name]).any() for name, mask in get_masks(model).items())
        assert float(pruner.parts[0].candidates.removed(get_masks(model))) >= 0.7 * step / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": "first"}, "pruning.sparsity: 0.9 of the dense 43,176 bytes leave fewer than the"),
        ({"granularity": "unit"}, "'of: bytes' belongs to granularity weight, not to unit"),
        ({"rules": [{"match": "0", "ignore": True}]}, "'of: bytes' looks at the whole model and takes no rules"),
    ],
)
def test_what_bytes_do_not_go_with_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError) as error:
        Pruner(network(), {"sparsity": 0.9, "of": "bytes", **settings}, 1)
    assert message in str(error.value)
