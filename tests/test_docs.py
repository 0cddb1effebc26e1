"""Every block of code that README and docs show is run, page by page, or has a reason not to be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sparsify
from tests.pages import ROOT, blocks_of, run_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages with a test of their own, which also looks at what comes out.
OWN = {"export.md", "format.md", "hub.md", "masks.md", "patterns.md", "runtime.md", "shrink.md", "trainers.md"}
WITH_CODE = [
    page for page in PAGES if page.name not in OWN and any(b.language in ("python", "sh") for b in blocks_of(page))
]


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages take for granted: recipes, a finished run, weights, images."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("recipes", "examples"):
        (folder / name).symlink_to(ROOT / name)
    overrides = [
        "model=timm:test_resnet",
        "train.max_steps=10",
        "data.limit=200",
        "data.batch_size=40",
        "train.device=cpu",
    ]
    recipe = sparsify.read_recipe(ROOT / "recipes" / "union_mask.yaml", overrides)
    sparsify.train(recipe, out=folder / "runs" / "a")
    torch.save(sparsify.build_model("cifar:resnet20", num_classes=10).state_dict(), folder / "weights.pt")
    noise = np.random.default_rng(0)
    for part, kind, number in [(p, k, n) for p in ("train", "test") for k in ("rose", "tulip") for n in range(4)]:
        place = folder / "flowers" / part / kind
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (100, 110, 3), dtype=np.uint8)).save(place / f"{number}.png")
    shutil.copy(folder / "flowers" / "test" / "rose" / "0.png", folder / "photo.png")
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(world, tmp_path / "page", symlinks=True)
    monkeypatch.chdir(tmp_path / "page")
    return tmp_path / "page"


@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=called)
def test_what_a_page_shows_runs(page: Path, here: Path) -> None:
    torch.manual_seed(0)
    run_page(page)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
@pytest.mark.parametrize("page", [page for page in WITH_CODE if any(b.slow for b in blocks_of(page))], ids=called)
def test_what_a_page_shows_runs_with_its_slow_blocks(page: Path, here: Path) -> None:
    run_page(page, slow=True)


def test_every_page_is_run_or_has_a_test_of_its_own() -> None:
    tested = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_docs.py")
    for name in OWN:
        assert f"docs/{name}" in tested or f'"docs" / "{name}"' in tested, name


def test_a_block_that_fails_fails_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    good = "text\n```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n"
    page.write_text(good)
    assert run_page(page) == []
    wrong: list[tuple[str, Callable[[Any], bool]]] = [
        ("```python\nassert x == 2\n```\n", lambda error: isinstance(error, AssertionError)),
        ("```sh\nsparsify inspect no-such-file\n```\n", lambda error: "exit code 2" in str(error)),
        ("```sh\nsparsify train --no-such\n```\n", lambda error: "No such option" in str(error)),
        ("```sh\nrm -rf x\n```\n", lambda error: isinstance(error, AssertionError)),
        ("<!-- not run: tired -->\n```python\n1 / 0\n```\n", lambda error: "tired" in str(error)),
    ]
    for block, right in wrong:
        page.write_text(good + block)
        with pytest.raises(AssertionError) as caught:
            run_page(page)
        assert right(caught.value), block
    page.write_text(good + "<!-- not run: needs CUDA -->\n```python\n1 / 0\n```\n")
    assert run_page(page) == ["line 11: needs CUDA"]
