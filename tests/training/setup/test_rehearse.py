"""A look at a run before it starts: what it builds, and what it would refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.training.recipe.read import Recipe, parse_recipe
from sparsify.training.setup.rehearse import rehearse


def recipe(**changes: Any) -> Recipe:
    given = {
        "model": "timm:test_resnet",
        "data": {"name": "digits", "limit": 60, "batch_size": 30},
        "train": {"epochs": 1, "device": "cpu"},
        "prune": {"sparsity": 0.5},
    }
    return parse_recipe(given | changes)


def test_numbers_are_those_of_the_model() -> None:
    before = torch.get_rng_state()
    found = rehearse(recipe(), check=False)
    assert found.parameters == 373_658 and found.left_out == ()
    assert torch.equal(torch.get_rng_state(), before)
    assert found.prepared is not None and found.prepared.training.data.train_count == 60
    # Half of what is masked goes, and a bit for each entry of a mask comes.
    masked = sum(mask.numel() for name, mask in found.prepared.training.model.named_buffers() if name.endswith("_mask"))
    assert found.bytes_dense - found.bytes_file == pytest.approx(masked * (2 - 1 / 8), abs=1)
    assert found.multiply_adds is not None and found.multiply_adds > found.parameters


def test_mistakes_of_the_run_are_met() -> None:
    with pytest.raises(SparsifyError, match="nothing_like_it"):
        rehearse(recipe(prune={"sparsity": 0.5, "ignore": ["nothing_like_it"]}), check=False)
    with pytest.raises(SparsifyError, match="beta"):
        rehearse(recipe(train={"device": "cpu", "optimizer": {"name": "sgd", "arguments": {"beta": 1}}}), check=False)


def test_data_that_would_be_downloaded_are_not(tmp_path: Path) -> None:
    found = rehearse(recipe(data={"name": "cifar100", "dir": str(tmp_path)}), check=False)
    assert found.prepared is None and "downloaded" in found.left_out[0]
    assert list(tmp_path.iterdir()) == []
