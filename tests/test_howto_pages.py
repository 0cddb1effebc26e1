"""What the how-to pages show does what they say; that it runs at all is a matter of tests/test_docs.py."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.pruning.schedules import update_plan
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.training.recipe.read import read_recipe
from tests.pages import ROOT, blocks_of

HOWTO = ROOT / "docs" / "howto"


def shown(page: Path, index: int, language: str = "python") -> str:
    return [block.code for block in blocks_of(page) if block.language == language][index]


def run(page: str, index: int) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(compile(shown(HOWTO / f"{page}.md", index), page, "exec"), scope)
    return scope


@pytest.mark.parametrize(("index", "sparsity"), [(0, 0.797), (1, 0.5)], ids=["loop", "criterion"])
def test_loops_reach_their_sparsity(
    index: int, sparsity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope = run("loop", index)
    kept = torch.cat([mask.flatten() for mask in sparsify.get_masks(scope["model"]).values()])
    assert round(1 - kept.double().mean().item(), 3) == sparsity


def test_the_criterion_shown_has_at_most_ten_lines_and_decides() -> None:
    code = shown(HOWTO / "loop.md", 1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    scope = run("loop", 1)
    scores = scope["relative_magnitude"](
        {n: p.detach() for n, p in scope["model"].named_parameters() if p.ndim > 1}, None
    )
    kept = torch.cat([scores[name][mask] for name, mask in sparsify.get_masks(scope["model"]).items()])
    removed = torch.cat([scores[name][~mask] for name, mask in sparsify.get_masks(scope["model"]).items()])
    assert kept.min() >= removed.max() and len(removed) == len(kept) == 96


def test_the_schedule_shown_reaches_its_target() -> None:
    updates = update_plan(parse_pruning(run("loop", 2)["pruning"]), 100)
    assert (updates[-1].step, updates[-1].sparsity) == (80, Fraction(9, 10))


def test_the_channels_shown_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope = run("channels", 0)
    before, after = scope["report"].parameters
    assert after < 0.3 * before
    small, x = scope["small"], torch.randn(2, 3, 32, 32)
    assert torch.allclose(small(x), scope["model"].eval()(x), atol=1e-5)
    held = {id(parameter) for group in scope["optimizer"].param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in scope["report"].model.parameters()}


@pytest.mark.parametrize(
    ("page", "after_cycles"), [("recipes", "union"), ("howto/layers", None), ("howto/move", None)], ids=str
)
def test_the_recipes_shown_are_read(
    page: str, after_cycles: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dense.pth").touch()
    text = shown(ROOT / "docs" / f"{page}.md", 0, "yaml")
    if "model:" not in text:
        text = f"model: cifar:resnet20\n{text}"
    (tmp_path / "shown.yaml").write_text(text)
    (tmp_path / "DATA").mkdir()
    recipe = read_recipe(tmp_path / "shown.yaml", [f"data=folder:{tmp_path / 'DATA'}"] if "DATA" in text else [])
    assert recipe.prune is not None and recipe.prune.after_cycles == after_cycles
