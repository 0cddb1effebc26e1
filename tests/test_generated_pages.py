"""What scripts write into the documentation is current, and the site is built without a warning."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sparsify
from cli.main import sparsify as command_group
from sparsify.training.recipe.read import read_recipe, recipe_schema
from tests.pages import ROOT
from tools import recipe_keys

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_the_page_on_keys_is_current() -> None:
    assert recipe_keys.PAGE.read_text() == recipe_keys.page(), "run: python -m tools.recipe_keys"


def test_the_page_on_keys_has_every_key() -> None:
    text = recipe_keys.PAGE.read_text()

    def keys(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = set(node["properties"]) if isinstance(node.get("properties"), dict) else set()
            return own.union(*(keys(value) for value in node.values()))
        return set().union(*(keys(value) for value in node)) if isinstance(node, list) else set()

    assert keys(recipe_schema()) <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_the_schema_beside_the_recipes_is_current() -> None:
    text = recipe_keys.SCHEMA.read_text()
    assert text == CliRunner().invoke(command_group, ["recipe-schema"]).output
    assert json.loads(text) == recipe_schema()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_its_schema_first(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found and (path.parent / found[1]).resolve() == recipe_keys.SCHEMA
    read_recipe(path)


def test_the_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tools import pictures

    pictures.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    found = [
        path for path in pictures.FOLDER.iterdir() if path.stem != "sweep"
    ]  # a page on reports says how it is made
    stored = {path.name: path.read_text() for path in found}
    assert drawn.keys() == stored.keys()
    for name, text in stored.items():
        assert re.findall(r">([^<>]+)</text>", drawn[name]) == re.findall(r">([^<>]+)</text>", text), name
        if f"Matplotlib v{version('matplotlib')}" in text:
            assert re.findall(r'<path d="[^"]+"', drawn[name]) == re.findall(r'<path d="[^"]+"', text), name


def literals() -> list[str]:
    """Return the text of every string in the source, a gap where something is filled in."""
    found = []
    for path in [*(ROOT / "sparsify").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("\0".join(part.value if isinstance(part, ast.Constant) else "" for part in node.values))  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_explained_are_those_of_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    source = literals()
    assert len(messages) > 35
    for message in messages:
        pieces = [piece.strip() for piece in message.split("...") if len(piece.strip()) > 3]
        if message.startswith("sparsify."):
            continue
        assert any(all(piece in line for piece in pieces) for line in source), message


def test_python_shows_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert sorted(re.findall(r"^::: sparsify\.(\w+)$", text, re.MULTILINE)) == sorted(sparsify.__all__)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if find_spec("zensical") is None or find_spec("mkdocstrings") is None:
        pytest.skip("needs zensical and mkdocstrings-python: pip install '.[docs]'")
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "paths: [.]" in settings
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [.]", f"paths: [{ROOT}]"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "python" / "index.html").read_text()
    assert 'id="sparsify.convert"' in page and "<code>total_steps</code>" in page
