"""Patterns of a recipe that match nothing are told with the line they were written in."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.recipe.read import parse_recipe, read_recipe
from sparsify.training.run.train import train
from sparsify.training.setup.prepare import prepare

TEXT = """model: cifar:resnet20
data: {name: digits, batch_size: 500}
prune:
  sparsity: 0.5
  ignore:
    - last
    - PATTERN
  rules:
    - match: RULE
      sparsity: 0.2
"""


def test_the_line_of_a_pattern_is_told(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(TEXT.replace("PATTERN", "layer1.0.cnv1"))
    with pytest.raises(SparsifyError) as error:
        prepare(read_recipe(path))
    assert str(error.value).startswith(f"{path}:7: prune.ignore.1: 'layer1.0.cnv1' matches no weight of the model; did")
    path.write_text(TEXT.replace("PATTERN", "first").replace("RULE", "Lniear"))
    with pytest.raises(SparsifyError) as error:
        prepare(read_recipe(path), check=False)
    assert str(error.value).startswith(f"{path}:9: prune.rules.0.match.0: 'Lniear' matches no weight")
    with pytest.raises(SparsifyError) as error:
        prepare(read_recipe(path, ["prune.only=[nothing]"]), check=False)
    assert str(error.value).startswith("--set prune.only=[nothing]: prune.only.0: 'nothing' matches no weight")


def test_a_result_prints_the_table_of_layers_and_what_was_reached(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {"epochs": 1, "device": "cpu"}
    recipe = {"data": {"name": "digits", "batch_size": 500}, "train": settings, "prune": {"sparsity": 0.5}}
    lines = str(train(recipe, model=model, out=tmp_path / "run")).splitlines()
    assert lines[0].split() == ["layer", "shape", "kept", "sparsity"]
    assert lines[1].split() == ["1.weight", "10x64", "320", "50.0", "%"]
    assert lines[2] == "sparsity 50.0 %, 50.0 % requested: 320 of 640 pruned weights removed"
    assert lines[-2].startswith("test accuracy ") and lines[-1] == f"in {tmp_path / 'run'}"


def test_equal_settings_are_equal_recipes_wherever_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    recipe = read_recipe(path)
    assert recipe == parse_recipe(recipe) and recipe != read_recipe(path, ["prune.sparsity=0.6"])
    assert recipe.where("prune", "sparsity") == f"{path}:4: prune.sparsity"
