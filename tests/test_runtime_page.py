"""What docs/runtime.md shows is run here, or at least understood by the command line."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.main import sparsify as command_group

TEXT = (Path(__file__).parents[1] / "docs" / "runtime.md").read_text()
PACKAGE = Path(__file__).parents[1] / "sparsify" / "runtime"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_python_shown_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    [code] = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, "runtime.md", "exec"), names)
    with torch.no_grad():
        wanted = names["model"](names["images"])
    assert (names["logits"] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    out = capsys.readouterr().out
    assert out.startswith("engine of ResNet") and "input 8x3x32x32: " in out and " ms  PyTorch" in out
    assert (tmp_path / "tuning.json").is_file()  # as the page says


@pytest.mark.parametrize("line", "".join(blocks("sh")).splitlines())
def test_the_commands_shown_are_understood(line: str) -> None:
    args = shlex.split(line, comments=True)[1:]
    with command_group.make_context("sparsify", list(args)) as context:
        name, command, rest = command_group.resolve_command(context, list(args))
        assert name == "bench" and command is not None
        command.make_context(name, rest, parent=context)


def test_the_files_named_are_there() -> None:
    named = re.findall(r"`(runtime/[\w/]+\.py)`", TEXT)
    assert named and all((PACKAGE.parent / name).is_file() for name in named)
