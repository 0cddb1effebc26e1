"""Every way out, by one contract; what is particular to a format is tested beside it."""

import errno
import os
from pathlib import Path

import pytest
import torch

import sparsify
from sparsify.errors import SparsifyError
from sparsify.formats.ways_out import WAYS

from .toys import network


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("format", WAYS)
def test_help_is_one_sentence(format: str) -> None:
    assert WAYS[format].help.endswith(".") and WAYS[format].help.count(". ") == 0


@pytest.mark.parametrize("format", WAYS)
def test_an_option_that_a_format_does_not_take_is_one_line(format: str, tmp_path: Path) -> None:
    for option, value in {"dtype": "float16", "batch_size": 2, "example_input": torch.zeros(1)}.items():
        if option not in WAYS[format].takes:
            with pytest.raises(SparsifyError, match=f"^save: {format} takes no {option} [^\n]*$"):
                sparsify.save(network(), tmp_path / "x", format=format, **{option: value})
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="^save: unknown format 'spares'[^\n]*'sparse'[^\n]*$"):
        sparsify.save(network(), tmp_path / "x", format="spares")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from sparsify.formats.folders import atomic_folder

    for name in ("new", "empty"):
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").write_text(name)
            assert not (tmp_path / "new" / "a").exists()
        assert tree(tmp_path) == {"new/a": name.encode()}
        (tmp_path / "new" / "a").unlink()
    with pytest.raises(OSError), atomic_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == ["new"] and not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("where", ["full", "file", "nowhere/new"])
def test_a_folder_is_not_written_over_another_or_nowhere(where: str, tmp_path: Path) -> None:
    from sparsify.formats.folders import atomic_folder

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("1")
    (tmp_path / "file").write_text("2")
    with pytest.raises(SparsifyError, match="^cannot write [^\n]*$"), atomic_folder(tmp_path / where):
        raise AssertionError("the block is not reached")
    assert tree(tmp_path) == {"full/precious": b"1", "file": b"2"}
