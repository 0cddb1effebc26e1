"""The plan of a recipe with rules."""

from pathlib import Path

import pytest

from cli.view.plan import show_plan
from sparsify.training.recipe.read import read_recipe

RULES = (
    "[{match: last, ignore: true}, {match: stages.1, granularity: '2:4'}, "
    "{match: stages.0, amount: 3, criterion: random}]"
)


def test_each_rule_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "one_shot.yaml"
    show_plan(
        read_recipe(recipe, [f"prune.rules={RULES}", "prune.ignore=[]", "prune.scope=layer", "prune.sparsity=0.9"])
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("about ") and "for the run, estimated by " in lines[-1]
    first = next(index for index, line in enumerate(lines) if line.startswith("prune "))
    assert lines[first].startswith("prune 90.0 % of the weights by magnitude, scope layer: ")
    assert lines[first + 1 : first + 4] == [
        "  last: stay dense",
        "  stages.1: 50.0 % of the weights, 2:4, by magnitude, scope layer",
        "  stages.0: 3 entries in each layer by random, scope layer",
    ]
