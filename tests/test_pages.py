"""What the pages name exists: files, modules, tables, tests, links."""

import pkgutil
import re
from contextlib import suppress
from pathlib import Path

import pytest

import sparsify
from sparsify.errors import SparsifyError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
FOLDERS = ("benchmarks", "cli", "docs", "examples", "recipes", "sparsify", "tests", "tools")
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


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in links, as GitHub and Python-Markdown both make it."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_are_headings(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / path if path else page), (path, anchor)


def test_pages_of_the_site_link_to_pages_of_the_site() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).resolve().is_relative_to(ROOT / "docs"), (page, link)


def test_every_page_is_in_the_navigation_and_on_the_first_page() -> None:
    menu = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert menu == pages
    first = set(re.findall(r"\]\(([\w/-]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert first == pages - {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_public_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"python -m ((?:benchmarks|tools)\.[a-z]\w*(?:\.\w+)*)", text):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name
    for name in re.findall(r"`sparsify\.(\w+)\(", text):
        assert name in sparsify.__all__, name
    metadata = {"sparsify.spec", "sparsify.extra", "sparsify.inputs"}  # keys in an ONNX file
    for name in set(re.findall(r"`(sparsify(?:\.[A-Za-z_]\w*)+)", text)) - metadata:
        with suppress(SparsifyError):  # it is there, and a package that it needs is not
            pkgutil.resolve_name(name)


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


def test_the_citation_is_of_this_version() -> None:
    from ruamel.yaml import YAML

    told = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text())
    assert (told["version"], told["license"], told["cff-version"]) == (sparsify.__version__, "Apache-2.0", "1.2.0")
    assert {"title", "message", "authors", "abstract"} <= told.keys()


def test_the_hooks_and_the_makefile_run_the_checks_of_ci() -> None:
    checks = re.findall(r"^(?:ruff|mypy).*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    targets = (ROOT / "Makefile").read_text()
    assert checks == hooks == re.findall(r"^\t((?:ruff|mypy).*)$", targets, re.MULTILINE)
    for line in re.findall(r"^pytest.*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE):
        assert f"\t{line}\n" in targets
