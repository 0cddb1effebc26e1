import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

import cli.export  # noqa: F401 - what the tests run is imported before standard output is taken away
import sparsify as library
from cli.main import main


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A stream into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream


def _run(*args: object) -> object:
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    return caught.value.code


def test_work_is_done_to_its_end_when_nobody_reads_what_is_said(
    tmp_path: Path, pruned: Path, unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", unread)
        assert _run("export", pruned, "--out", tmp_path / "a.safetensors", "--format", "dense") == 0
        assert _run("inspect", pruned) == 0  # a table
        assert _run("models") == 0
        assert sys.stdout is unread
    assert library.build_model("timm:test_resnet", num_classes=10).state_dict().keys() == _keys(tmp_path)


def test_a_mistake_keeps_its_exit_code_when_nobody_reads_errors(
    tmp_path: Path, unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", unread)
        assert _run("inspect", tmp_path / "nothing") == 2
        assert sys.stderr is unread


def _keys(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "a.safetensors", framework="pt") as file:
        return set(file.keys())


def test_closed_output_is_no_obstacle(tmp_path: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert _run("inspect", pruned) == 0
        assert _run("inspect", tmp_path / "nothing") == 2
        assert sys.stdout is None and sys.stderr is None
