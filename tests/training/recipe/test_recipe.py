import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.errors import SparsifyError
from sparsify.training.recipe.read import Recipe, check_names, parse_recipe, read_recipe, recipe_schema
from sparsify.training.recipe.settings import DataSettings
from sparsify.training.recipe.yaml_lines import parse_yaml

RECIPE = dedent("""\
    model: {name: cifar:resnet20}
    data: {name: digits, batch_size: 128}
    train:
      epochs: 60
      optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 5e-4}
      lr_schedule: {name: cosine, cycles: 5}
    prune:
      criterion: magnitude
      scope: layer
      sparsity: 0.9
      ignore: [last]
      schedule: {name: cyclic, ramp: half, cycles: 4}
      begin: 0.0
      end: 0.8
      every: 10it
      after_cycles: union
    """)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(SparsifyError) as caught:
        read_recipe(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{path.parent}/", "")


def changed(path: Path, old: str, new: str) -> Path:
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    return path


def test_recipe_says_what_the_file_says(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.name == "mine"
    assert recipe.train.optimizer.weight_decay == 0.0005
    assert recipe.train.lr_schedule.name == "cosine"
    assert recipe.prune is not None and recipe.prune.schedule.cycles == 4 and recipe.prune.every == "10it"


def test_recipe_without_prune_is_dense(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("model: cifar:resnet20\n")
    recipe = read_recipe(tmp_path / "d.yaml")
    assert recipe.prune is None and recipe.data.name == "digits"


@pytest.mark.parametrize("overrides", [(), ("prune=null",), ("model.arguments={in_channels: 1, widths: [1, 2, 3]}",)])
def test_yaml_of_a_recipe_reads_back_equal(file: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = read_recipe(file, overrides)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "again.yaml") == recipe


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(1e-12, 1e6), st.integers(0, 2**63 - 1), st.text(min_size=1, max_size=8))
def test_any_value_survives_yaml(sparsity: float, lr: float, seed: int, name: str) -> None:
    recipe = Recipe.model_validate(
        {
            "name": name,
            "model": {"name": "cifar:resnet20", "arguments": {name: name}},
            "train": {"seed": seed, "optimizer": {"lr": lr}},
            "prune": {"sparsity": sparsity},
        }
    )
    assert parse_recipe(parse_yaml(recipe.to_yaml(), "recipe").value) == recipe


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("sparsity: 0.9", "sparsty: 0.9", "mine.yaml:10: prune.sparsty: unknown key; did you mean 'sparsity'?"),
        ("sparsity: 0.9", "sparsity: 1.5", "mine.yaml:10: prune.sparsity: 1.5 is no sparsity"),
        ("epochs: 60", "epochs: sixty", "mine.yaml:4: train.epochs: should be a valid integer; given 'sixty'"),
        ("epochs: 60", "epochs: true", "mine.yaml:4: train.epochs: should be a valid integer; given true"),
        ("epochs: 60", "epochs: 0", "mine.yaml:4: train.epochs: should be greater than or equal to 1; given 0"),
        (
            "epochs: 60",
            "epochs: 60\n  epochs: 3",
            "mine.yaml:5: train.epochs: repeated key; it is first given on line 4",
        ),
        ("epochs: 60", "sparsity: 0.5", "mine.yaml:4: train.sparsity: unknown key; did you mean 'prune.sparsity'?"),
        (
            "epochs: 60",
            "precision: bf61",
            "mine.yaml:4: train.precision: should be 'no', 'bf16' or 'fp16'; given 'bf61'",
        ),
        ("lr: 0.1", "lr: .nan", "mine.yaml:5: train.optimizer.lr: should be a finite number; given nan"),
        ("name: cosine", "name: cosin", "mine.yaml:6: train.lr_schedule: unknown name 'cosin'; did you mean 'cosine'?"),
        ("cycles: 5", "cycels: 5", "mine.yaml:6: train.lr_schedule.cycels: unknown key; did you mean 'cycles'?"),
        (
            "name: cosine",
            "name: constant",
            "mine.yaml:6: train.lr_schedule.cycles: belongs to another name than 'constant'",
        ),
        (
            "criterion: magnitude",
            "criterion: magnitud",
            "mine.yaml:8: prune.criterion: unknown criterion 'magnitud'; did",
        ),
        ("begin: 0.0", "begin: 50", "mine.yaml:13: prune.begin: 50 is no time"),
        ("name: sgd", "name: sdg", "mine.yaml:5: train.optimizer.name: unknown optimiser 'sdg'; did you mean 'sgd'?"),
        ("name: digits", "name: digit", "mine.yaml:2: data.name: unknown data set 'digit'; did you mean 'digits'?"),
        ("cifar:resnet20", "resnet20", "mine.yaml:1: model.name: model 'resnet20' has no prefix"),
        ("cifar:resnet20", "timm:resnt50", "mine.yaml:1: model.name: unknown model 'timm:resnt50'; did you mean"),
        ("{name: cifar:resnet20}", "{pretrained: false}", "mine.yaml:1: model.name: missing key"),
        ("{name: cifar:resnet20}", "[1, 2", "mine.yaml:2: not YAML: "),
        (RECIPE, "- 1\n- 2\n", "mine.yaml: a recipe is a mapping with the keys name, model, data, train, prune"),
        (RECIPE, "", "mine.yaml: a recipe is a mapping"),
        (RECIPE, "a: \x00", "mine.yaml: not YAML: "),
        (RECIPE, "a: 1\n---\nb: 2\n", "mine.yaml:2: not YAML: "),
        (RECIPE, "? [a, b]\n: 1\n", "mine.yaml:1: a key must be a word"),
    ],
)
def test_mistake_is_one_line_with_place_and_guess(file: Path, old: str, new: str, expected: str) -> None:
    assert problem(changed(file, old, new)).startswith(expected)


def test_first_of_several_mistakes_is_told_with_their_number(file: Path) -> None:
    text = problem(changed(file, "begin: 0.0", "begn: 0.0\n  edn: 1"), "prune.scope=globl")
    assert text.startswith("mine.yaml:13: prune.begn: unknown key; did you mean 'begin'?")
    assert text.endswith("(and 2 more)")


def test_missing_file_names_its_likely_neighbour(file: Path) -> None:
    assert problem(file.with_name("mine.yml")) == "mine.yml: no such recipe; did you mean 'mine.yaml'?"


def test_file_that_is_no_text_or_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert problem(tmp_path / "b.yaml") == "b.yaml: not YAML: the file is not UTF-8 text"
    with pytest.raises(SparsifyError, match="cannot be read"):
        read_recipe(tmp_path)


def test_overrides_are_put_over_the_file_in_order(file: Path) -> None:
    recipe = read_recipe(
        file,
        [
            "model.name=timm:vgg19_bn",
            "train.optimizer.weight_decay=1e-3",
            "train.epochs=4",
            "train.epochs=5",
            "prune.schedule=linear",
            "prune.schedule.initial_sparsity=0.1",
            "prune.after_cycles=null",
            "data.dir=/tmp/a=b",
        ],
    )
    assert recipe.model.name == "timm:vgg19_bn"
    assert recipe.train.optimizer.weight_decay == 0.001
    assert recipe.train.optimizer.lr == 0.1
    assert recipe.train.epochs == 5
    assert recipe.prune is not None and recipe.prune.schedule.name == "linear"
    assert recipe.prune.schedule.initial_sparsity == 0.1
    assert recipe.data.dir == "/tmp/a=b"


def test_override_makes_the_sections_it_needs(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("model: cifar:resnet20\n")
    recipe = read_recipe(tmp_path / "d.yaml", ["prune.sparsity=0.5", "model.pretrained=false"])
    assert recipe.prune is not None and recipe.prune.sparsity == 0.5 and recipe.model.name == "cifar:resnet20"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.sparsty=0.9", "prune.sparsty: unknown key; did you mean 'sparsity'?"),
        ("prune.sparsity=1.5", "prune.sparsity: 1.5 is no sparsity"),
        ("prune.sparsity", "an override is written section.key=value"),
        ("train..epochs=1", "an override is written section.key=value"),
        ("train.epochs.x=1", "train.epochs is 60, which has no keys"),
        ("train.epochs=[", "1: not YAML: "),
        ("data=digts", "data.name: unknown data set 'digts'; did you mean 'digits'?"),
        ("model.checkpoint=/nowhere/a.pt", "model.checkpoint: no such file '/nowhere/a.pt'"),
        ("model.masks=a.safetensors", "model.masks: given masks stay as they are; leave out the key 'prune'"),
    ],
)
def test_wrong_override_is_named_by_its_text(file: Path, override: str, expected: str) -> None:
    assert problem(file, override).startswith(f"--set {override}: {expected}".replace(": 1: not", ":1: not"))


def test_masks_of_a_dense_recipe_must_be_there(file: Path) -> None:
    overrides = ["prune=null", "model.masks=/nowhere/a.safetensors"]
    with pytest.raises(SparsifyError, match="model.masks: no such file '/nowhere/a.safetensors'"):
        read_recipe(file, overrides)


def test_recipe_is_frozen(file: Path) -> None:
    recipe = read_recipe(file)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3


def test_mapping_is_checked_like_a_file() -> None:
    with pytest.raises(SparsifyError, match=r"^recipe: train.epoch: unknown key; did you mean 'epochs'\?"):
        parse_recipe({"model": "cifar:resnet20", "train": {"epoch": 3}})
    with pytest.raises(SparsifyError, match=r"^recipe: model.name: unknown model 'cifar:resnet21'"):
        check_names(parse_recipe({"model": "cifar:resnet21"}))


def test_schema_describes_every_key() -> None:
    schema = recipe_schema()
    json.dumps(schema)
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        key
        for section in sections
        for key, value in section.get("properties", {}).items()
        if "description" not in value and key != "name"
    ]
    assert undescribed == []


def test_wrong_recipe_is_answered_without_torch(file: Path) -> None:
    changed(file, "cifar:resnet20", "timm:resnt50")
    code = dedent("""\
        import sys
        from sparsify.errors import SparsifyError
        from sparsify.training.recipe.read import read_recipe
        try:
            read_recipe(sys.argv[1])
        except SparsifyError as error:
            print(error)
        assert not {"torch", "timm", "torchvision"} & set(sys.modules)
        """)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert "did you mean 'timm:res" in done.stdout


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "weights.pt").touch()
    given = {"model": {"name": "cifar:resnet20", "checkpoint": "~/weights.pt"}, "data": {"dir": "~/data"}}
    found = parse_recipe(given)
    assert found.model.checkpoint == f"{tmp_path}/weights.pt" and found.data.dir == f"{tmp_path}/data"
    for prefix in ("folder:", "hf:"):
        settings = DataSettings(name=f"{prefix}~/pictures")
        assert settings.name == f"{prefix}{tmp_path}/pictures"


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("train.compile=true", "train.compile: true does not go with train.shard"),
        ("train.channels_last=true", "train.channels_last: true does not"),
        ("train.precision=fp16", "train.precision: fp16 does not"),
        ("prune.criterion=synflow", "criterion 'synflow' (those are magnitude, random, snip, movement) does not"),
        ("prune.granularity=unit", "granularity unit does not"),
        ("prune.granularity=4x1", "blocks of several rows does not"),
        ("prune.shrink=true", "shrink does not"),
        ("prune={sparsity: 0.5, scope: global, most: 0.9}", "least and most does not"),
        ("prune.rules=[{match: [first], criterion: wanda}]", "criterion 'wanda' (those are"),
    ],
)
def test_what_does_not_work_on_a_model_in_parts_is_refused(file: Path, override: str, refused: str) -> None:
    assert read_recipe(file, [override]).train.shard is False
    assert refused in problem(file, "train.shard=true", override)


def test_a_recipe_of_a_model_in_parts(file: Path) -> None:
    rule = "prune.rules=[{match: [first], ignore: true}]"
    assert read_recipe(file, ["train.shard=true", rule, "prune.criterion=snip"]).train.shard
    assert "shard" in problem(file, "train.shrad=true")
