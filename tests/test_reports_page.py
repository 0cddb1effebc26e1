"""What docs/reports.md shows is run here, or at least understood by the command line."""

import csv
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.main import sparsify as command_group
from sparsify import report
from sparsify.report.statistics import accuracy_text, difference, difference_text, mean_of
from tests.report.conftest import finished as finished

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reports.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line[1:] for line in lines if line[0] == "sparsify"]


@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_every_command_shown_is_understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with command_group.make_context("sparsify", list(args)) as context:
        name, command, rest = command_group.resolve_command(context, list(args))
        assert command is not None and name is not None
        given = command.make_context(name, rest, parent=context).params
    if name == "sweep":
        from sparsify.sweep.vary import parse_seeds, parse_varied, sweep_runs

        varied = [parse_varied(text) for text in given["vary"]]
        assert len(sweep_runs(given["recipe"], varied, parse_seeds(given["seeds"]), Path("runs"))) == 9


def test_the_python_shown_draws_figures(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert is not installed: pip install 'sparsify-torch[report]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(finished)
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "reports.md", "exec"), scope)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "accuracy.svg", "layers.png", "overlap.svg"}
    assert f"{scope['layers'].kept_parameters:,} of" in capsys.readouterr().out


def test_the_names_shown_are_there() -> None:
    text = PAGE.partition("Also\nthere:")[2].partition("## ")[0]
    names = {name for name in re.findall(r"`(?:report\.)?(\w+)[`(]", text)}
    assert {"loss", "paired_differences", "write"} <= names and names - {"latency"} <= {*report.__all__}


def test_the_table_shown_is_that_of_its_rows() -> None:
    with (ROOT / "docs" / "pictures" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        cells.setdefault(row["label"], {})[row["seed"]] = float(row["test_accuracy"])
        assert row["folder"].startswith("runs/")
    first = next(iter(cells.values()))
    assert len(rows) == 9 and len(cells) == 3
    for label, values in cells.items():
        [line] = [line for line in PAGE.splitlines() if line.startswith(f"{label} ")]
        assert f" {accuracy_text(mean_of(values))} " in line
        assert difference_text(difference(values, first)) in line or values is first
    assert (ROOT / "docs" / "pictures" / "sweep.svg").read_text().startswith("<svg")
