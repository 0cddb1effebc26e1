"""Folders that no run can be in: one line, and nothing is touched."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest

from sparsify.errors import SparsifyError
from sparsify.training.folder.run_folder import check_new, create, default_folder, stored_recipe
from sparsify.training.recipe.read import parse_recipe

RECIPE = parse_recipe({"model": "cifar:resnet20"})


def a_file(path: Path) -> Path:
    path.write_text("mine")
    return path


def below_a_file(path: Path) -> Path:
    return a_file(path) / "run"


def a_loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def below_a_loop(path: Path) -> Path:
    return a_loop(path) / "run"


def a_dangling_link(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere"))
    return path


def full(path: Path) -> Path:
    path.mkdir()
    (path / "a").write_text("mine")
    return path


WAYS: dict[str, Callable[[Path], Path]] = {
    "a file": a_file,
    "below a file": below_a_file,
    "a loop of links": a_loop,
    "below a loop of links": below_a_loop,
    "a dangling link": a_dangling_link,
    "a folder of other things": full,
    "too long a name": lambda path: path.with_name("a" * 300),
    "a NUL": lambda path: Path(f"{path}\0x"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_folder_is_one_line(way: str, tmp_path: Path) -> None:
    folder = WAYS[way](tmp_path / "x")
    before = sorted(tmp_path.rglob("*"))

    def begin() -> None:
        check_new(folder, overwrite=True)
        create(folder, RECIPE, overwrite=True)

    for use in (begin, lambda: stored_recipe(folder)):
        with pytest.raises(SparsifyError) as caught:
            use()
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_is_told_in_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SparsifyError, match=f"^{tmp_path}: may not be written to$"):
        check_new(tmp_path / "new" / "run", overwrite=False)


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # root may write anywhere
    with pytest.raises(SparsifyError, match=r"cannot be read or written \(Permission denied\)"):
        create(tmp_path, RECIPE, overwrite=False)


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names of any bytes")
def test_a_folder_whose_name_is_no_text_holds_a_run(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    create(folder, RECIPE, overwrite=False)
    assert stored_recipe(folder) == RECIPE


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "nonsense"])
def test_the_locale_changes_nothing(locale: str, tmp_path: Path) -> None:
    (tmp_path / "é.yaml").write_text("name: é\nmodel: cifar:resnet2\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": locale, "PYTHONPATH": str(Path(__file__).parents[3])}
    code = "from cli import main; main(['train', 'é.yaml'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    line = done.stderr.decode("utf-8")
    assert line.startswith("sparsify: é.yaml:2: model.name: unknown model 'cifar:resnet2'") and line.count("\n") == 1


def test_a_run_has_a_name_that_windows_takes() -> None:
    for name in ("union_mask", "a b", "é", "x.y"):
        path = PureWindowsPath(default_folder(parse_recipe({"name": name, "model": "timm:resnet18.a1_in1k"})))
        assert len(path.parts) == 2 and not path.is_absolute() and not path.drive
    for name in ("C:\\x", "\\\\host\\share", "a\\..\\..\\b", "D:"):
        with pytest.raises(SparsifyError, match="is no name of a folder in runs/"):
            default_folder(parse_recipe({"name": name, "model": "cifar:resnet20"}))
