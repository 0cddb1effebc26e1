"""Everything the README shows is run here, or at least understood by the command line."""

import re
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import sparsify
from cli.main import sparsify as command_group
from sparsify.pruning.schedules import update_plan
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.training.recipe.read import read_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the arguments of every sparsify command shown."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line[line.index("sparsify") + 1 :] for line in lines if "sparsify" in line]


def test_the_first_two_commands_are_the_ones_promised() -> None:
    first, second = blocks("sh")[0].splitlines()
    assert first == "pip install . && sparsify train recipes/union_mask.yaml"
    assert second == "pip install '.[test]' && pytest"


@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_every_command_shown_is_understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with command_group.make_context("sparsify", list(args)) as context:
        name, command, rest = command_group.resolve_command(context, list(args))
        assert command is not None and name is not None
        given = command.make_context(name, rest, parent=context).params
    if name == "train" and given["recipe"]:
        assert read_recipe(given["recipe"], given["overrides"]).prune is not None


def test_every_command_of_the_program_is_shown() -> None:
    assert {args[0] for args in commands()} == set(command_group.list_commands(click.Context(command_group)))


@pytest.mark.parametrize(("index", "sparsity"), [(0, 0.797), (3, 0.5)], ids=["loop", "criterion"])
def test_python_shown_runs(index: int, sparsity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[index], "README.md", "exec"), scope)
    kept = torch.cat([mask.flatten() for mask in sparsify.get_masks(scope["model"]).values()])
    assert round(1 - kept.double().mean().item(), 3) == sparsity


def test_the_criterion_shown_has_at_most_ten_lines_and_decides() -> None:
    code = blocks("python")[3]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    scores = scope["relative_magnitude"](
        {n: p.detach() for n, p in scope["model"].named_parameters() if p.ndim > 1}, None
    )
    kept = torch.cat([scores[name][mask] for name, mask in sparsify.get_masks(scope["model"]).items()])
    removed = torch.cat([scores[name][~mask] for name, mask in sparsify.get_masks(scope["model"]).items()])
    assert kept.min() >= removed.max() and len(removed) == len(kept) == 96


def test_the_schedule_shown_reaches_its_target() -> None:
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[4], "README.md", "exec"), scope)
    updates = update_plan(parse_pruning(scope["pruning"]), 100)
    assert (updates[-1].step, updates[-1].sparsity) == (80, Fraction(9, 10))


def test_the_recipe_shown_is_read(tmp_path: Path) -> None:
    [text] = blocks("yaml")
    (tmp_path / "union.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "union.yaml")
    assert recipe.prune is not None and recipe.prune.after_cycles == "union"


def test_the_recipes_named_are_the_ones_shipped() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{path.stem}`" in TEXT
    for name in re.findall(r"[\w/]+\.yaml", TEXT):
        assert name == "recipe.yaml" or (ROOT / name).exists()


def test_the_channels_shown_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), scope)
    before, after = scope["report"].parameters
    assert after < 0.3 * before
    small, x = scope["small"], torch.randn(2, 3, 32, 32)
    assert torch.allclose(small(x), scope["model"].eval()(x), atol=1e-5)
    held = {id(parameter) for group in scope["optimizer"].param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in scope["report"].model.parameters()}


def test_the_engine_shown_gives_the_models_outputs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[2], "README.md", "exec"), scope)
    with torch.no_grad():
        wanted = scope["model"](scope["images"])
    assert (scope["logits"] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert "stages.0.0.conv1" in capsys.readouterr().out
