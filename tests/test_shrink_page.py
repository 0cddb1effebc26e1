"""What the page on channels shows is run here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.surgery.rules.table import Rule, entrywise, indicator, spread

TEXT = (Path(__file__).parents[1] / "docs" / "shrink.md").read_text()


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, "shrink.md", "exec"), scope)
    return scope


def test_rules_of_the_users_own_are_followed(shown: dict[str, Any]) -> None:
    model, example, rules = shown["model"], shown["example"], shown["rules"]
    assert shown["channels"].groups == 8 and shown["channels"].barriers == ()
    without = sparsify.analyse(model, example)
    assert without.groups == 0 and any("operation 'mylib::halved'" in line for line in without.barriers)
    sparsify.convert(model, ignore=["last"])
    pruning = {"granularity": "unit", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=example, rules=rules).start()
    report = sparsify.shrink(model, example, rules=rules)
    assert report.removed == 4 and report.kept == ()
    torch.testing.assert_close(report.model(example), model(example))


def test_a_rule_that_fails_keeps_what_it_meets_and_is_named(shown: dict[str, Any]) -> None:
    def fails(*_: Any) -> None:
        raise IndexError("no such dimension")

    good = shown["rules"]["mylib::total"]
    for wrong in (Rule(fails, good.flow), Rule(good.couple, fails)):
        rules = {"mylib::halved": entrywise(keeps_zero=True), "mylib::total": wrong}
        found = sparsify.analyse(shown["Net"](), shown["example"], rules=rules)
        assert found.groups == 0
        reason = "the model: operation 'mylib::total' does not fit its rule (IndexError: no such dimension)"
        assert reason in found.barriers


def test_rules_may_import_the_indicator_by_its_former_name() -> None:
    assert spread is indicator


def test_what_is_no_rule_is_refused(shown: dict[str, Any]) -> None:
    with pytest.raises(sparsify.SparsifyError, match=r"analyse: rules\['mylib::halved'\] is not a Rule"):
        sparsify.analyse(shown["model"], shown["example"], rules={"mylib::halved": "relu"})  # type: ignore[dict-item]
