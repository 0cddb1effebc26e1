"""What the page on patterns shows is run here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.formats.file.inspection import inspect_file
from sparsify.pruning.criteria.table import CRITERIA
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.pruning.settings.sections import UNIT_CRITERIA
from sparsify.training.recipe.yaml_lines import parse_yaml

TEXT = (Path(__file__).parents[1] / "docs" / "patterns.md").read_text()


def test_the_python_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(code, "patterns.md", "exec"), scope)
    mask = sparsify.get_masks(scope["model"])["0.weight"]
    assert (mask.reshape(-1, 4).sum(1) == 2).all()
    [row] = [row for row in inspect_file(tmp_path / "model.safetensors").rows if row.name == "0.weight"]
    bits = 64 * 128 // 4 * 3
    assert row.encoding == "n:m" and row.bytes_stored == 64 * 128 // 2 * 4 + bits // 8 + 3


def test_the_page_lists_every_criterion_with_what_it_needs() -> None:
    table = re.findall(r"^\| `(\w+)` \|.*\|([\w, ]*)\| [\w .]*\|$", TEXT.split("## By which scores")[1], re.MULTILINE)
    assert sorted(name for name, _ in table) == sorted(CRITERIA)
    for name, needs in table:
        assert ("batches" in needs) == getattr(CRITERIA[name], "needs_data", False)
        assert ("input" in needs) == getattr(CRITERIA[name], "needs_input", False)
        assert ("units" in needs) == (name in UNIT_CRITERIA)


def test_each_way_of_writing_is_read_as_said() -> None:
    for short, long in re.findall(r"^\| `(\S+)`, or `\{(.*?)\}`", TEXT, re.MULTILINE):
        name, *_ = re.findall(r"name: \"?([\w:]+)", long)
        numbers = [int(number) for number in re.findall(r"\b\d+\b", long)]
        granularity = parse_pruning({"sparsity": 0.5, "granularity": short}).granularity
        assert granularity.name == name
        assert numbers == [value for value in (granularity.n, granularity.m, *(granularity.size or ())) if value]


def test_the_rules_shown_are_rules_of_a_recipe() -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    pruning = parse_pruning(parse_yaml(shown, "patterns.md").value["prune"])
    assert [rule.match[0] for rule in pruning.rules or ()] == ["last", "Linear", "layer1"]
