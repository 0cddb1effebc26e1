"""Names from a file of the user's own: what a recipe can do with them, and what is told of a wrong file."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from sparsify.errors import SparsifyError
from sparsify.pruning.schedules import update_plan
from sparsify.training.folder.same_recipe import differences
from sparsify.training.recipe.plugin import read_plugin
from sparsify.training.recipe.read import parse_recipe, read_recipe, recipe_schema
from sparsify.training.run.train import TrainResult, train
from sparsify.training.setup.plan import plan_training
from sparsify.training.setup.rehearse import rehearse

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_methods.py"
PRUNE = {
    "criterion": "large_rows",
    "schedule": {"name": "quadratic", "initial_sparsity": 0.2},
    "sparsity": 0.4,
    "every": "1it",
}
DECLARED: dict[str, Any] = {
    "model": "timm:test_resnet",
    "data": {"name": "stripes", "batch_size": 125, "workers": 0},
    "train": {"epochs": 2, "log_every": 1, "device": "cpu", "optimizer": {"lr": 0.01}},
    "prune": PRUNE,
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(DECLARED | changes))
    return path


def plugin_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.py"
    path.write_text(text)
    return path


def assert_same(one: TrainResult, other: TrainResult) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_recipe_can_name_a_criterion_a_schedule_and_a_data_set_of_a_file(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), plugin=EXAMPLE)
    assert recipe.prune is not None and recipe.plugin is not None
    assert recipe.plugin.sha256 == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    plan = update_plan(recipe.prune, 10)
    assert [float(plan[index].sparsity or 0) for index in (0, 4, -1)] == pytest.approx([0.2, 0.2 + 0.2 * 0.75, 0.4])
    assert plan_training(recipe).total_steps == 8
    found = rehearse(recipe, check=False)
    assert found.prepared is not None and found.prepared.training.data.num_classes == 2
    assert "criterion: name: large_rows" in " ".join(recipe.to_yaml().split())


def test_rules_take_the_names_too(tmp_path: Path) -> None:
    rules = [{"match": "fc", "criterion": "large_rows", "sparsity": 0.5}]
    recipe = read_recipe(written(tmp_path, prune={"sparsity": 0.9, "rules": rules}), plugin=EXAMPLE)
    assert recipe.prune is not None and recipe.prune.rules is not None
    criterion = recipe.prune.rules[0].criterion
    assert criterion is not None and criterion.function is not None and recipe.prune.criterion.name == "magnitude"


def test_a_run_keeps_the_hash_and_goes_on_with_the_same_file_alone(tmp_path: Path) -> None:
    def stop_after(steps: int) -> Any:
        asked = iter(range(100))
        return lambda: next(asked) >= steps

    whole = train(DECLARED, out=tmp_path / "a", plugin=EXAMPLE)
    assert whole.report is not None and whole.report.share == pytest.approx(0.4, abs=1e-3)
    folder = tmp_path / "b"
    with pytest.raises(Exception, match="stopped after step"):
        train(DECLARED, out=folder, plugin=EXAMPLE, stop=stop_after(4))
    with pytest.raises(SparsifyError, match=r"plugin: names in it come from a plugin, my_methods.py: --plugin FILE"):
        train(None, out=folder, resume=True)
    other = plugin_of(tmp_path, f"{EXAMPLE.read_text()}\n# another")
    with pytest.raises(
        SparsifyError, match=r"made with another plugin: my_methods.py of SHA-256 \w{12}..., and own.py"
    ):
        train(None, out=folder, resume=True, plugin=other)
    moved = tmp_path / "moved.py"
    moved.write_bytes(EXAMPLE.read_bytes())
    assert_same(whole, train(None, out=folder, resume=True, plugin=moved))


def test_a_run_without_a_plugin_does_not_go_on_with_one() -> None:
    plain = parse_recipe(DECLARED | {"prune": {"sparsity": 0.5}, "data": "digits"})
    given = parse_recipe(DECLARED | {"prune": {"sparsity": 0.5}, "data": "digits"}, plugin=read_plugin(EXAMPLE))
    assert "plugin.sha256 is None there" in differences(plain.to_yaml(), given)
    assert differences(given.to_yaml(), given) == "" == differences(plain.to_yaml(), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "large_row"}, r"criterion: unknown criterion 'large_row'; did you mean 'large_rows'\?"),
        ({"schedule": {"name": "quadratc"}}, r"schedule: unknown schedule 'quadratc'; did you mean 'quadratic'\?"),
        ({"rules": [{"match": "fc", "criterion": "rows"}]}, r"rules.0.criterion: unknown criterion 'rows'"),
    ],
)
def test_a_name_that_the_file_does_not_have_is_one_line_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SparsifyError, match=rf"recipe.yaml:\d+: prune.{message}") as caught:
        read_recipe(written(tmp_path, prune=PRUNE | changes), plugin=EXAMPLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "strips"}, r"data.name: unknown data set 'strips'"),
        ({"plugin": {"name": "x.py", "sha256": "0" * 64}}, r"made with another plugin: x.py of SHA-256 000000000000"),
        ({"plugin": "os.py"}, r"plugin: .*'os.py'"),
    ],
)
def test_another_wrong_name_is_one_line_too(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        read_recipe(written(tmp_path, **changes), plugin=EXAMPLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def", r"own.py:1: SyntaxError"),
        ("\nimport no_such_module", r"own.py:2: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", r"own.py:1: SystemExit: 3"),
        ("import os\n", r"defines none of CRITERIA, SCHEDULES, DATASETS$"),
        ("CRITERION = {'a': len}", r"it has 'CRITERION'; did you mean 'CRITERIA'\?"),
        ("CRITERIA = [len]", r"CRITERIA is a list; it is a dict"),
        ("CRITERIA = {'magnitude': len}", r"'magnitude' is a criterion already"),
        ("SCHEDULES = {'cubic': len}", r"'cubic' is a schedule already"),
        ("DATASETS = {'digits': len}", r"'digits' is a data set already"),
        ("DATASETS = {'hf:x': len}", r"'hf:x' is no name"),
        ("SCHEDULES = {3: len}", r"3 is no name"),
        ("CRITERIA = {'a': 'os.system'}", r"'a' is a str, not a function"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(SparsifyError, match=message) as caught:
        read_plugin(plugin_of(tmp_path, text))
    assert "\n" not in str(caught.value) and str(tmp_path / "own.py") in str(caught.value)
    assert "SyntaxError" not in message or not any(
        name.startswith("sparsify_plugin") for name in set(sys.modules) - before
    )


@pytest.mark.parametrize(
    ("name", "message"), [("own.py", "Is a directory"), ("my_method.py", "did you mean '.*my_methods.py'")]
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "own.py").mkdir()
    (tmp_path / "my_methods.py").touch()
    with pytest.raises(SparsifyError, match=message):
        read_plugin(tmp_path / name)


def test_what_a_function_raises_is_one_line_with_the_plugins_own(tmp_path: Path) -> None:
    text = "def inner(given):\n    return {}[given]\n\ndef wrong(folder):\n    return inner('x')\n"
    path = plugin_of(tmp_path, f"{text}DATASETS = {{'wrong': wrong}}")
    with pytest.raises(SparsifyError, match=r"own.py:2: data set 'wrong': KeyError: 'x'"):
        train(DECLARED | {"data": "wrong", "prune": {"sparsity": 0.5}}, out=tmp_path / "run", plugin=path)
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_none_and_settings_that_it_would_not_follow_are_one_line(tmp_path: Path) -> None:
    path = plugin_of(tmp_path, "DATASETS = {'own': lambda folder: [1, 2]}")
    declared = DECLARED | {"prune": {"sparsity": 0.5}}
    with pytest.raises(SparsifyError, match="it is a torch.utils.data.Dataset or DataLoader"):
        train(declared | {"data": "own"}, out=tmp_path / "run", plugin=path)
    with pytest.raises(SparsifyError, match=r"data.image_size: .* leave it out"):
        train(declared | {"data": {"name": "stripes", "image_size": 32}}, out=tmp_path / "run", plugin=EXAMPLE)


def test_dataclasses_and_marks_work_in_a_plugin(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom sparsify import needs_data\n"
        "@dataclass\nclass Thing:\n    size: int = 1\n@needs_data\ndef one(weights, context):\n    return weights\n"
        "CRITERIA = {'one': one}\n"
    )
    assert read_plugin(plugin_of(tmp_path, text)).criteria["one"].needs_data  # type: ignore[attr-defined]


def test_a_recipe_never_names_a_file_to_execute(tmp_path: Path) -> None:
    path = plugin_of(tmp_path, "raise AssertionError('executed')")
    named = {"name": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    with pytest.raises(SparsifyError, match="names in it come from a plugin"):
        read_recipe(written(tmp_path, plugin=named))
    assert recipe_schema()["properties"]["plugin"]["description"]


def test_a_recipe_that_was_read_with_a_plugin_has_it(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path), plugin=EXAMPLE)
    assert train(recipe, out=tmp_path / "run").metrics["step"] == 8
    with pytest.raises(SparsifyError, match="a Recipe has its plugin already"):
        train(recipe, out=tmp_path / "other", plugin=EXAMPLE)
