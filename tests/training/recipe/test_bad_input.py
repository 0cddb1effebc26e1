"""Recipes written by mistake or to do harm: one line, whatever stands in them, in little time and memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sparsify.errors import SparsifyError
from sparsify.training.folder.run_folder import default_folder
from sparsify.training.recipe.read import Recipe, parse_recipe, read_recipe
from sparsify.training.recipe.yaml_lines import parse_yaml

MODEL = "model: cifar:resnet20\n"
BOMB = MODEL + "a: &a [x,x,x,x,x,x,x,x,x]\n"
BOMB += "".join(
    f"{name}: &{name} [{','.join(['*' + of] * 9)}]\n" for of, name in zip("abcdefgh", "bcdefghi", strict=True)
)

TRAPS: dict[str, tuple[str, str]] = {
    "an alias bomb": (BOMB, "more than 20,000 values, aliases written out"),
    "an alias of itself": ("model: &a [*a]\n", "nested too deeply"),
    "an alias of a mapping in itself": ("model: &a {name: *a}\n", "nested too deeply"),
    "5,000 brackets": (f"model: {'[' * 5000}{']' * 5000}\n", "nested too deeply: more than 32 levels"),
    "5,000 braces": (f"model: {'{a: ' * 5000}1{'}' * 5000}\n", "nested too deeply"),
    "5,000 dashes": (f"{'- ' * 5000}1\n", "nested too deeply"),
    "a list of six megabytes": (f"{MODEL}a: [{'1,' * 3_000_000}1]\n", "too long: more than 100,000 characters"),
    "a tag without its number": (f'{MODEL}a: !!int ""\n', ":2: not YAML: '' does not fit its tag"),
    "a tag without its fraction": (f'{MODEL}a: !!float ""\n', ":2: not YAML: '' does not fit its tag"),
    "a tag without its truth": (f"{MODEL}a: !!bool maybe\n", ":2: not YAML: 'maybe' does not fit its tag"),
    "a binary of one letter": (f'{MODEL}a: !!binary "a"\n', ":2: not YAML: "),
    "code": (f"{MODEL}a: !!python/name:os.system x\n", ":2: not YAML: could not determine a constructor"),
    "a number of 100,000 bits": (f"train: {{seed: 0x{'f' * 25_000}}}\n", "is too large; whole numbers are below 2^63"),
    "a number of 6,000 digits": (f"train: {{seed: {'9' * 6000}}}\n", ":1: not YAML: Exceeds the limit"),
    "a number beyond floats": (f"{MODEL}train: {{optimizer: {{lr: 1e400}}}}\n", "should be a finite number; given inf"),
    "a fraction of a billion digits": (f'{MODEL}prune: {{sparsity: "1e-999999999"}}\n', "is no sparsity"),
    "a time of 4,000 digits": (f'{MODEL}prune: {{sparsity: 0.5, every: "{"9" * 4000}it"}}\n', "a time is a fraction"),
    "an image of 10^9 pixels": (f"{MODEL}data: {{image_size: 1000000000}}\n", "less than or equal to 16384"),
    "a batch of 10^12 images": (f"{MODEL}data: {{batch_size: 1000000000000}}\n", "less than or equal to 1000000"),
    "epochs without end": (f"{MODEL}train: {{epochs: 100000000000000}}\n", "less than or equal to 1000000"),
    "a folder with a NUL": (f'{MODEL}data: {{dir: "a\\0b"}}\n', "is no path: it has a NUL character"),
    "a model argument of the builder": (
        "model: {name: cifar:resnet20, arguments: {name: x}}\n",
        "'name' is set by model.name",
    ),
    "weights among the arguments": (
        "model: {name: torchvision:resnet18, arguments: {weights: DEFAULT}}\n",
        "'weights' is set by model.pretrained; leave it out here",
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_one_line(name: str, tmp_path: Path) -> None:
    text, expected = TRAPS[name]
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(SparsifyError) as caught:
        read_recipe(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}:") and expected in line and len(line) < 1100


def test_traps_need_neither_memory_nor_time(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for number, (text, _) in enumerate(TRAPS.values()):
        (tmp_path / f"{number}.yaml").write_text(text)
    code = dedent("""\
        import resource, sys
        from sparsify.errors import SparsifyError
        from sparsify.training.recipe.read import read_recipe
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        for path in sys.argv[1:]:
            try:
                read_recipe(path)
            except SparsifyError:
                continue
            raise AssertionError(path)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """)
    assert resource.RLIMIT_AS is not None
    paths = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    scale = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * scale < 200e6


def test_an_anchor_still_stands_for_a_few_values() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "r").value == {"a": [1, 2], "b": [1, 2]}


def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a section and of those within it."""
    for name, field in model.model_fields.items():
        if name != "function":  # from Python alone
            yield (*path, name)
            for inner in sections(field.annotation):
                yield from keys(inner, (*path, name))


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


KEYS = sorted(set(keys(Recipe)))
WRONG: list[Any] = [
    *(None, True, False, -1, 0, 2**62, -(2**62), 10**400, 0.5, -0.5, 1e308, float("inf"), float("nan")),
    *("", "x", "a\nb", "\0", "../../x", "1/0", "1e400", "1e-99999", "nan", "9" * 5000, "0ep", "-1it", "é" * 300),
    *([], [[]], [None], [1, "a"], ["x"] * 1000, {}, {"name": 1}, {"name": None}, {"x": {"y": []}}, {"name": "x"}, b"a"),
]


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_any_wrong_value_of_any_key_is_one_line(path: tuple[str, ...]) -> None:
    refused = 0
    for value in WRONG:
        tree: dict[str, Any] = {"model": {"name": "cifar:resnet20"}, "prune": {"sparsity": 0.5}}
        node = tree
        for key in path[:-1]:
            node[key] = dict(node.get(key, {}))
            node = node[key]
        node[path[-1]] = value
        try:
            parse_recipe(tree)
        except SparsifyError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000
    assert refused > 5


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_WORDS = st.sampled_from(sorted({key for path in KEYS for key in path} | {"digits", "cifar:resnet20", "cyclic", "2:4"}))
_TREES = st.recursive(
    _SCALARS | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.dictionaries(_WORDS, _TREES, max_size=5))
def test_any_mapping_is_a_recipe_or_one_line(tree: dict[str, Any]) -> None:
    try:
        parse_recipe({"model": "cifar:resnet20", **tree})
    except SparsifyError as error:
        assert "\n" not in str(error)


@settings(max_examples=150)
@given(st.text(st.sampled_from("ab:-?[]{},&*!|>%'\"#\n 10.\t\\x~"), max_size=60) | st.text(max_size=30))
def test_any_text_is_values_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "r")
    except SparsifyError as error:
        assert "\n" not in str(error) and str(error).startswith("r:")


NAMES = ["../../x", "/tmp/x", "a/b", "a\\b", "C:x", "a" * 300, "é" * 150, "a\0b", "a\nb", "con.x", "NUL.", "a|b", "x?"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_name_leads_nowhere_outside_runs(name: str) -> None:
    with pytest.raises(SparsifyError, match=r"^name: .* is no name of a folder in runs/") as caught:
        default_folder(parse_recipe({"name": name, "model": "cifar:resnet20"}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["union_mask", "My recipe 2.0", "é", "..", "concise.v2", "a+b"])
def test_other_recipe_names_are_folders_in_runs(name: str) -> None:
    folder = default_folder(parse_recipe({"name": name, "model": "timm:hf-hub:../../a/b"}))
    assert folder.parent == Path("runs") and folder.name == f"{name}-.._.._a_b-1"


def test_missing_folder_names_the_nearest_recipe_beside_it(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("")
    for path, guess in (("recpies/mine.yaml", True), ("recpies/mien.yaml", True), ("elsewhere/mine.yaml", False)):
        hint = f"; did you mean '{tmp_path / 'recipes' / 'mine.yaml'}'?" if guess else ""
        with pytest.raises(SparsifyError) as caught:
            read_recipe(tmp_path / path)
        assert str(caught.value) == f"{tmp_path / path}: no such recipe{hint}"
