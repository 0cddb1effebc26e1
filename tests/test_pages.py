"""What the pages name exists: files, modules, tables, tests, links."""

import re
from pathlib import Path

import pytest

import sparsify

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
FOLDERS = ("benchmarks", "cli", "docs", "examples", "recipes", "sparsify", "tests")
ROOMS = tuple(path.name for path in (ROOT / "sparsify").iterdir() if path.is_dir() and not path.name.startswith("_"))


def named(text: str) -> set[str]:
    """Return what stands in backquotes and looks like a path of this repository."""
    code = re.findall(r"`([\w./-]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    inside = (*FOLDERS, *ROOMS)
    return {name for name in code if name.endswith(".py") or "/" in name and name.partition("/")[0] in inside}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    paths = {name for name in named(text) if not any((base / name).exists() for base in (ROOT, ROOT / "sparsify"))}
    assert paths == set()
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_public_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"python -m (benchmarks\.[a-z]\w*(?:\.\w+)*)", text):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name
    for name in re.findall(r"`sparsify\.(\w+)\(", text):
        assert name in sparsify.__all__, name


def test_the_tables_that_contributors_are_sent_to_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"`([\w/]+\.py)`\s+\(((?:`\w+`(?:,\s+)?)+)\)", text)
    assert len(found) >= 12
    for path, names in found:
        code = (ROOT / path).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE), (path, name)


def test_the_pictures_show_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text.partition("```mermaid")[2].partition("```")[0]
    for room in ROOMS:
        assert f"{room}/" in picture
        for inner in (path.name for path in (ROOT / "sparsify" / room).iterdir() if (path / "__init__.py").exists()):
            assert re.search(rf"\b{inner}\b", picture), (room, inner)


def test_the_hooks_and_the_makefile_run_the_checks_of_ci() -> None:
    checks = re.findall(r"^(?:ruff|mypy).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    targets = (ROOT / "Makefile").read_text()
    assert checks == hooks == re.findall(r"^\t((?:ruff|mypy).*)$", targets, re.MULTILINE)
    for line in re.findall(r"^pytest.*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE):
        assert f"\t{line}\n" in targets
