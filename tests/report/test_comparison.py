import json
import math

import pytest

from sparsify.errors import SparsifyError
from sparsify.report import compare, read_run

from .conftest import Derive

MORE = ("  sparsity: 0.8\n", "  sparsity: 0.9\n")
GLOBAL = ("scope: filter", "scope: global")


def test_runs_of_one_recipe_are_one_mean(derive: Derive) -> None:
    folders = [
        derive("a1", seed=1, accuracy=0.5),
        derive("b1", seed=1, accuracy=0.4, change=MORE),
        derive("b2", seed=2, accuracy=0.5, change=MORE),
        derive("a2", seed=2, accuracy=0.7),
    ]
    one, other = compare([read_run(folder) for folder in folders])
    assert (one.label, other.label) == ("sparsity=0.8", "sparsity=0.9")
    assert [run.folder.name for run in one.runs] == ["a1", "a2"] and one.accuracy == {1: 0.5, 2: 0.7}
    assert one.reached.mean == pytest.approx(0.6) and one.reached.deviation == pytest.approx(0.02**0.5)
    assert one.against is None and other.against is not None
    assert other.against.n == 2 and other.against.mean == pytest.approx(-0.15)
    assert one.series == other.series


def test_a_dense_run_comes_first_and_is_called_so(derive: Derive) -> None:
    pruned = derive("pruned")
    dense = derive("dense", accuracy=0.9)
    text = (dense / "recipe.yaml").read_text()
    (dense / "recipe.yaml").write_text(text[: text.index("prune:")])
    cells = compare([read_run(pruned), read_run(dense)])
    assert [cell.label for cell in cells] == ["dense", "small"]
    assert cells[1].against is not None and cells[1].against.mean == pytest.approx(-0.4)


def test_names_and_keys_tell_recipes_apart(derive: Derive) -> None:
    both = [read_run(derive("f")), read_run(derive("g", change=GLOBAL))]
    assert [cell.label for cell in compare(both)] == ["scope=filter", "scope=global"]
    named = derive("h", change=GLOBAL)
    text = (named / "recipe.yaml").read_text().replace("name: small", "name: other", 1)
    (named / "recipe.yaml").write_text(text)
    other = read_run(named)
    assert [cell.label for cell in compare([both[0], other])] == ["small", "other"]
    more = read_run(derive("i", change=MORE))
    cells = compare([both[0], other, more])
    assert [cell.label for cell in cells] == ["small, sparsity=0.8", "other", "small, sparsity=0.9"]
    assert [cell.series for cell in cells] == ["small", "other", "small"]


def test_where_it_ran_is_no_other_recipe(derive: Derive) -> None:
    runs = [read_run(derive("a")), read_run(derive("b", seed=2, change=("  workers: 2", "  workers: 0")))]
    [cell] = compare(runs)
    assert cell.seeds == [1, 2]


def test_a_loss_that_is_no_number_does_not_keep_accuracies_from_being_compared(derive: Derive) -> None:
    folder = derive("nan")
    path = folder / "metrics.jsonl"
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({**json.loads(last), "test_loss": None})]) + "\n")
    [cell] = compare([read_run(folder)])
    assert cell.accuracy == {1: 0.5} and math.isnan(cell.loss[1])


def test_what_cannot_be_compared_is_one_line(derive: Derive) -> None:
    one = read_run(derive("one"))
    with pytest.raises(SparsifyError, match=r"same recipe and seed \(1\) as .*one; give each run once"):
        compare([one, read_run(derive("again"))])
    fewer = read_run(derive("fewer", change=("  limit:\n", "  limit: 100\n")))
    with pytest.raises(SparsifyError, match=r"fewer: data.limit is 100 and not None, as in .*one: accuracies on diff"):
        compare([one, fewer])
    with pytest.raises(SparsifyError, match="untested: its last record has no test accuracy"):
        compare([one, read_run(derive("untested", seed=3, accuracy=None))])
