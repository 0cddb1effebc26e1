import pytest

from benchmarks.coverage.wild.__main__ import PACKAGES
from benchmarks.coverage.wild.checks import STAGES, check
from benchmarks.coverage.wild.models import ALL
from benchmarks.coverage.wild.summary import reasons, table


def test_every_model_says_its_package() -> None:
    assert {name.split()[0] for name in ALL} == set(PACKAGES)


def test_table_counts_what_holds_and_names_gaps_once() -> None:
    good = {"model": "a", "parameters": 100, "after": 40, **dict.fromkeys(STAGES, "ok")}
    bad = {**good, "model": "b", "engine": "left to PyTorch", "onnx": "no"}
    found = {"a": good, "b": bad, "c": {**bad, "model": "c"}, "d": {"model": "d", "problems": ["not there"]}}
    lines = table(found)
    assert lines[2] == "| a | + | + | + | + | + (40%) | + | + | + |"
    assert lines[3] == "| b | + | + | + | + | + (40%) | - | - | + |"
    assert lines[-1] == "| all | " + " | ".join(f"**{n}/3**" for n in (3, 3, 3, 3, 3, 1, 1, 3)) + " |"
    assert reasons(found) == ["- b, c: engine: left to PyTorch", "- b, c: onnx: no", "- d: not there"]


def test_stages_that_were_not_run_are_no_gaps() -> None:
    row = {"model": "a", "parameters": 100, "convert": "ok"}
    assert table({"a": row})[2] == "| a | + |  |  |  |  |  |  |  |" and reasons({"a": row}) == []


@pytest.mark.slow
@pytest.mark.sample
def test_a_model_of_torch_itself_holds_at_every_stage_but_exports() -> None:
    row = check("torch.nn GRU, packed", 100, ("verify", "save", "units", "engine"))
    assert {stage: row[stage] for stage in ("convert", "verify", "exact", "save", "units")} == dict.fromkeys(
        ("convert", "verify", "exact", "save", "units"), "ok"
    )
    assert row["gone"] and row["after"] < row["parameters"]
