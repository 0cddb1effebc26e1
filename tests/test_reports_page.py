"""What docs/reports.md says is so; its commands are run by tests/test_docs.py."""

import csv
import re
from pathlib import Path

from sparsify import report
from sparsify.report.statistics import accuracy_text, difference, difference_text, mean_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reports.md").read_text()


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
