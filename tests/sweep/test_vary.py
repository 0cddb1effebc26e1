from pathlib import Path

import pytest

from sparsify.errors import SparsifyError
from sparsify.sweep.vary import parse_seeds, parse_varied, sweep_runs

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "linear_ramp.yaml"


def test_the_product_is_in_order_of_seeds() -> None:
    varied = [parse_varied("prune.sparsity=[0.9, 1/3]"), parse_varied("prune.scope=[layer, global]")]
    runs = sweep_runs(RECIPE, varied, parse_seeds("2"), Path("out"), ["train.epochs=2"])
    assert [run.name for run in runs[:4]] == [
        "sparsity=0.9-scope=layer-seed=1",
        "sparsity=0.9-scope=global-seed=1",
        "sparsity=1/3-scope=layer-seed=1",
        "sparsity=1/3-scope=global-seed=1",
    ]
    assert [run.recipe.train.seed for run in runs] == [1] * 4 + [2] * 4
    assert {run.recipe.train.epochs for run in runs} == {2}
    assert [float(run.recipe.prune.target) for run in runs[:4]] == [
        0.9,
        0.9,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    ]
    assert len({run.folder for run in runs}) == 8 and all(run.folder.parent == Path("out") for run in runs)


def test_folders_are_plain_names_however_long_values_are() -> None:
    varied = [
        parse_varied("prune.ignore=[[last], [first, last, 'a/b', '*.very_long_name_of_a_layer_that_goes_on_and_on']]")
    ]
    runs = sweep_runs(RECIPE, varied, (1,), Path("out"))
    assert len({run.folder.name for run in runs}) == 2
    assert all(len(run.folder.name) < 140 and "/" not in run.folder.name for run in runs)


def test_values_are_what_yaml_makes_of_them() -> None:
    assert parse_varied("a.b=[1, x, null, true, {c: 2}]").values == ("1", '"x"', "null", "true", '{"c": 2}')
    assert parse_varied("train.epochs=[1]").key == "train.epochs"


@pytest.mark.parametrize(("text", "seeds"), [("3", (1, 2, 3)), ("5,1", (5, 1)), (" 2 , 7 ", (2, 7))])
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1,1", "1.5", "x", "1,"])
def test_wrong_seeds_are_one_line(text: str) -> None:
    with pytest.raises(SparsifyError, match=f"^--seeds {text}"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "a", "a=", "a=1", "a=[]", "=[1]", "a b=[1]", "a=[1", "a={b: 1}", "a=[1, 1]"])
def test_wrong_values_are_one_line(text: str) -> None:
    with pytest.raises(SparsifyError, match="--vary") as caught:
        parse_varied(text)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_one_line() -> None:
    both = [parse_varied("prune.sparsity=[0.9]"), parse_varied("prune.sparsity=[0.8]")]
    with pytest.raises(SparsifyError, match="--vary prune.sparsity: given twice"):
        sweep_runs(RECIPE, both, (1,), Path("out"))
