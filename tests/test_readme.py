"""What README says: its commands, its example, its figures. Its blocks run in tests/test_docs.py as well."""

import csv
import re
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import sparsify
from cli.main import sparsify as command_group
from sparsify.training.recipe.read import read_recipe
from tests.pages import ROOT, blocks_of, commands_of, understood

README = ROOT / "README.md"
TEXT = README.read_text()
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def commands(*pages: Path) -> list[list[str]]:
    """Return the words of every command of sparsify that the pages show."""
    found = [
        words
        for page in pages
        for block in blocks_of(page)
        if block.language == "sh"
        for words in commands_of(block.code)
    ]
    shown = [words[words.index("sparsify") :] for words in found if "sparsify" in words[:1]]
    return [words[: words.index(">")] if ">" in words else words for words in shown]


def test_the_first_two_commands_are_the_ones_promised() -> None:
    first, second = next(block.code for block in blocks_of(README)).splitlines()
    assert first == "pip install . && sparsify train recipes/union_mask.yaml"
    assert second == "pip install '.[test]' && pytest"


def test_it_is_one_screen() -> None:
    assert len(TEXT.splitlines()) <= 105


@pytest.mark.parametrize("words", commands(*PAGES), ids=" ".join)
def test_every_command_shown_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if "--help" in words:
        return
    understood(words)
    args = words[1:]
    with command_group.make_context("sparsify", list(args)) as context:
        name, command, rest = command_group.resolve_command(context, list(args))
        assert command is not None and name is not None
        given = command.make_context(name, rest, parent=context).params
    if name == "train" and given["recipe"]:
        there = [text for text in given["overrides"] if not text.startswith(("model.checkpoint=", "model.masks="))]
        read_recipe(given["recipe"], there, plugin=given["plugin"])


def test_every_command_of_the_program_is_shown() -> None:
    shown = {words[1] for words in commands(ROOT / "docs" / "reference" / "commands.md")}
    assert shown == set(command_group.list_commands(click.Context(command_group)))


def test_the_recipes_named_are_the_ones_shipped() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{path.stem}`" in text
    for page in PAGES:
        for name in re.findall(r"\brecipes/[\w/]+\.yaml", page.read_text()):
            assert (ROOT / name).exists(), (page, name)


def test_the_example_shown_is_sparse_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = next(block.code for block in blocks_of(README) if block.language == "python")
    scope: dict[str, Any] = {}
    exec(compile(code.partition("engine =")[0], "README.md", "exec"), scope)
    kept = torch.cat([mask.flatten() for mask in sparsify.get_masks(scope["model"]).values()])
    assert round(1 - kept.double().mean().item(), 3) == 0.9
    size = (tmp_path / "resnet18.safetensors").stat().st_size
    state = scope["model"].state_dict().items()
    dense = 4 * sum(value.numel() for name, value in state if not name.endswith(("_mask", "num_batches_tracked")))
    assert f"{size / 1e6:.1f} MB; dense it is {dense / 1e6:.1f} MB" in TEXT


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / name / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_of_conversion_are_the_measured_ones() -> None:
    found = rows("coverage")
    zoos = [sum(row["model"].startswith(zoo) for row in found) for zoo in ("timm:", "torchvision:")]
    ran = [row for row in found if row["same_bits_eval"]]
    assert f"{zoos[0]:,} timm and {zoos[1]}" in TEXT
    for row in ran:
        assert row["same_bits_eval"] == row["same_bits_train"] == "True" and row["live"] == row["masked"], row["model"]
    assert f"On all {len(ran):,} that could be run" in TEXT


def test_the_figures_of_the_engine_are_the_measured_ones() -> None:
    cells = [row for row in rows("runtime") if (row["network"], row["batch"]) == ("timm:resnet50", "16")]
    sparse = [row for row in cells if float(row["sparsity"]) >= 0.9]

    def times(*names: str) -> list[str]:
        return [f"{min(float(row[name]) for name in names) / float(row['engine']):.1f}" for row in sparse]

    shown = " ".join(TEXT.split())
    first, second, third = times("torch, contiguous", "torch, channels last")
    assert f"batch 16, two cores: {first}, {second} and {third} times as fast as PyTorch" in shown
    first, second, third = times("onnxruntime")
    assert f"and {first}, {second} and {third} times as fast as ONNX Runtime" in shown


def test_the_figures_of_the_file_are_the_measured_ones() -> None:
    found = [row for row in rows("size") if row["dtype"] == "float32" and 0.8 <= float(row["sparsity"]) <= 0.98]
    over = [int(row["sparsify"]) / int(row["limit"]) for row in found]
    assert f"{100 * min(over) - 100:.1f} to {100 * max(over) - 100:.1f} % larger" in " ".join(TEXT.split())
    others = [int(row["compressed_tensors"]) / int(row["limit"]) for row in found]
    assert f"{min(others):.2f} to {max(others):.0f} times it" in TEXT
    [row] = [r for r in found if (r["network"], r["sparsity"], r["scope"]) == ("timm:resnet50", "0.95", "layer")]
    assert f"{int(row['sparsify']) / 1e6:.1f} MB in place of {int(row['dense']) / 1e6:.0f}" in TEXT


def test_the_figures_of_removal_are_the_measured_ones() -> None:
    found = rows("shrink")
    ours, peer = ([row for row in found if row[name] == "works"] for name in ("ours", "peer"))
    assert f"{len(ours)} of {len(found)} networks, Torch-Pruning's on {len(peer)} of them" in TEXT
    survey = [row["shrink"] for row in rows("coverage") if row["shrink"]]
    assert f"{survey.count('shrinks')} of {len(survey)}" in " ".join(TEXT.split())
    largest = max(float(row["ours_cut_difference"]) for row in ours)
    assert f"outputs moved by {largest:.1e} of the largest" in TEXT
