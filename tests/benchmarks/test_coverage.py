"""The coverage of the model zoos: a model that converts is said to, and every way of failing ends in a telling row."""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import sparsify

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:timm"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def script(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def network() -> nn.Module:
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head)


def checked(model: nn.Module) -> dict[str, Any]:
    row: dict[str, Any] = script("coverage.checks").check_converted(model, (torch.randn(2, 3, 4, 4),), "by hand")
    return row


def test_a_model_that_converts_is_said_to_hold() -> None:
    row = checked(network())
    assert row["verdict"] == "holds" and row["problems"] == [] and row["keys"] is True
    assert (row["weights"], row["masked"], row["live"], row["unused"], row["leaks"]) == (2, 2, 2, 0, 0)
    assert row["eval"] is True and row["train"] is True and row["missed"] == {}


def test_a_model_without_train_mode_for_its_input_holds_in_part() -> None:
    row = checked(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(2, track_running_stats=True))
    )
    assert row["verdict"] == "part" and row["train"] is None and "train mode was not checked" in row["notes"][0]


def test_a_mask_without_effect_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> Any:
        report = sparsify.convert(model)
        model[5].__class__ = nn.Linear
        return report

    monkeypatch.setattr(script("coverage.checks"), "convert", broken)
    row = checked(network())
    assert row["verdict"] == "fails" and "5.weight: its mask has no effect" in row["problems"]


def test_a_conversion_that_changes_values_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> Any:
        with torch.no_grad():
            model[5].bias[0] += 1e-3
        return sparsify.convert(model)

    monkeypatch.setattr(script("coverage.checks"), "convert", broken)
    row = checked(network())
    assert row["eval"] is True and row["verdict"] == "fails"  # verify alone would not see it
    assert row["problems"] == [f"{mode}: the output is not the one before the conversion" for mode in ("eval", "train")]


def test_a_weight_that_is_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        script("coverage.checks"), "convert", lambda model: sparsify.convert(model, ignore=["5.weight"])
    )
    assert checked(network())["missed"] == {"5.weight": "ignored by '5.weight'"}


def test_an_output_that_is_not_finite_is_told() -> None:
    model = network()
    with torch.no_grad():
        model[5].bias[0] = torch.inf
    row = checked(model)
    assert row["verdict"] == "part" and row["notes"][0] == "eval: an output is not finite"


def test_filling_moves_what_would_hide_a_branch() -> None:
    model = network()
    script("coverage.models").fill(model)
    norm = model[1]
    assert all(tensor.unique().numel() == 4 for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    assert 0 < model[5].weight.abs().max() <= 16**-0.5 and model[5].weight.unique().numel() == 48


def results(work: dict[str, Any], **limits: Any) -> dict[str, dict[str, Any]]:
    run = script("coverage.processes").work_through
    limits = {"jobs": 2, "memory": 1.0, "seconds": 30.0} | limits
    return dict(run(list(work), work.__getitem__, lambda model, row: None, **limits))


def raises() -> dict[str, Any]:
    raise RuntimeError("two\nlines")


def test_every_end_of_a_process_gives_a_row() -> None:
    work = {
        "done": lambda: {"verdict": "holds", "long": "x" * 200_000},
        "raises": raises,
        "dies": lambda: os._exit(3),
        "greedy": lambda: {"verdict": "holds", "size": len(bytearray(3 << 30))},
    }
    rows = results(work)
    assert rows["done"]["verdict"] == "holds" and len(rows["done"]["long"]) == 200_000
    assert [rows[name]["verdict"] for name in ("raises", "dies", "greedy")] == ["error"] * 3
    assert rows["raises"]["problems"][0].startswith("RuntimeError: two lines (test_coverage.py:")
    assert "status 768" in rows["dies"]["problems"][0] and "MemoryError" in rows["greedy"]["problems"][0]


def test_a_process_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    row = results({"slow": lambda: time.sleep(60)}, seconds=0.2)["slow"]
    assert row["problems"] == ["not finished in 0 s"] and time.monotonic() - started < 30


def test_rows_are_kept_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = script("coverage.__main__")
    models = {"timm:a": ["timm.a", 3], "timm:b": ["timm.b", 2], "torchvision:c": ["torchvision.c", 500]}
    (tmp_path / "sizes.json").write_text(json.dumps(models))
    (tmp_path / "conversion.jsonl").write_text(json.dumps({"model": "timm:a", "verdict": "fails"}) + "\n")
    monkeypatch.setattr(coverage, "check_conversion", lambda model: {"verdict": "holds"})
    monkeypatch.setattr(coverage, "check_on_meta", lambda model, why: {"verdict": "part", "bits": f"meta: {why}"})

    def go(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["coverage", "--folder", str(tmp_path), *options])
        coverage.main()
        return {model: row["verdict"] for model, row in coverage.rows(tmp_path / "conversion.jsonl").items()}

    threads = torch.get_num_threads()
    try:
        assert go("--only", "*:c", "--largest", "100") == {"timm:a": "fails", "torchvision:c": "part"}
        assert go("--largest", "1000") == {"timm:a": "fails", "timm:b": "holds", "torchvision:c": "holds"}
        assert go("--redo-failed") == {"timm:a": "holds", "timm:b": "holds", "torchvision:c": "holds"}
        (tmp_path / "conversion.jsonl").write_text(json.dumps({"model": "timm:a", "verdict": "part"}) + "\n")
        assert go("--redo", "*:a") == {"timm:a": "holds", "timm:b": "holds", "torchvision:c": "holds"}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(script("coverage.summary"), "TABLE", tmp_path / "coverage.csv")
    monkeypatch.setattr(script("record"), "RESULTS", tmp_path / "results.md")
    yield tmp_path


def test_the_summary_counts_and_names_every_miss(written: Path) -> None:
    good = {"parameters": 9, "bits": "cpu", "weights": 3, "masked": 2, "live": 2, "unused": 0, "keys": True, "leaks": 0}
    holds = good | {"model": "timm:a", "eval": True, "train": True, "verdict": "holds", "problems": [], "notes": []}
    fails = holds | {"model": "timm:b", "live": 1, "verdict": "fails", "problems": ["x.weight: its mask has no effect"]}
    large = {"model": "torchvision:c", "parameters": 9, "bits": "meta: too large", "verdict": "part", "notes": []}
    large |= {"weights": 4, "masked": 4, "live": 4, "unused": 0, "keys": True, "eval": None, "train": None}
    small = {"model": "timm:a", "verdict": "shrinks", "parameters": 9, "after": 3, "form": "own class", "problems": []}
    small |= {"multiply_adds": [100, 20]}
    rows = {row["model"]: row for row in (holds, fails, large)}
    small |= {"zeros": small | {"after": 2, "difference": 1e-12}}
    script("coverage.summary").summarise(rows, {})
    script("coverage.summary").summarise({}, {"timm:a": small | {"difference": 0.0, "units": 5}})
    text = (written / "results.md").read_text()
    for line in (
        "| models | 2 | 1 |",
        "| every mask live or its weight not used by the forward | 1 | 1 |",
        "| same bits in eval mode | 2 | 0 |",
        "| all of this holds | 1 | 0 |",
        "| only on the meta device, where all that can be told holds | 0 | 1 |",
        "| of these masked | 4 | 4 |",
        "- x.weight: its mask has no effect: timm:b (1)",
        "- meta: too large: torchvision:c (1)",
        "| shrink | 1 | 1 | 0 | 0 |",
        "| parameters left, mean of those | 33% | 22% |  |  |",
        "| multiply-adds left, mean of those | 20% | 20% |  |  |",
    ):
        assert line in text.splitlines()
    table = (written / "coverage.csv").read_text().splitlines()
    assert table[1] == "timm:a,9,3,2,2,0,True,True,True,0,cpu,,holds,,5,3,0.2,0.0e+00,own class,shrinks,"
    assert len(table) == 4


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit", "torchvision:raft_small"])
def test_models_of_the_zoos(model: str) -> None:
    count = len(script("coverage.checks").weights_by_type(script("coverage.models").create(model, {})))
    row = script("coverage.checks").check_conversion(model)
    assert row["verdict"] == "holds" and row["live"] == row["masked"] == count
    row = script("coverage.meta").check_on_meta(model, "too large")
    assert row["verdict"] == "part" and row["live"] == row["masked"] == count and row["notes"] == []


REPORTED: dict[str, Any] = {"kept": (), "pruned": 4, "proved": ("a batch of 3",), "bound": (), "training": "equal"}


def without_removed_rows(model: nn.Sequential, given: Any, **_: Any) -> Any:
    plain = sparsify.fold(model)
    kept = plain[0].weight.abs().sum(1) > 0
    with torch.no_grad():
        plain[0].weight, plain[2].weight = (nn.Parameter(plain[0].weight[kept]), nn.Parameter(plain[2].weight[:, kept]))
    return SimpleNamespace(model=plain, multiply_adds=(72, 36), **REPORTED)


def nothing(model: nn.Sequential, given: Any, **_: Any) -> Any:
    return SimpleNamespace(model=sparsify.fold(model), multiply_adds=(72, 72), **REPORTED)


def with_other_outputs(model: nn.Sequential, given: Any, **_: Any) -> Any:
    report = without_removed_rows(model, given)
    with torch.no_grad():
        report.model[2].bias += 1e-3
    return report


def refusing(model: nn.Sequential, given: Any, **_: Any) -> Any:
    raise sparsify.SparsifyError("shrink: no")


@pytest.mark.parametrize(
    "shrink, verdict, problem",
    [
        (without_removed_rows, "shrinks", ""),
        (with_other_outputs, "fails", "outputs differ by"),
        (nothing, "fails", "100% of the parameters are left"),
        (refusing, "shrink", "SparsifyError: shrink: no"),
    ],
)
def test_a_shrunk_model_is_held_against_the_pruned_one(
    shrink: Any, verdict: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script("coverage.shrunk"), "shrink", shrink)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    row = script("coverage.shrunk").check_shrunk(model, (torch.randn(2, 6),), "by hand")
    assert row["verdict"] == verdict and " ".join(row["problems"]).startswith(problem)
    assert (row["parameters"], row["units"], row["barriers"]) == (75, 8, 0)
    assert row["zeros"]["verdict"] == verdict and row["zeros"]["problems"] == row["problems"]
    if verdict == "shrinks":
        assert row["after"] == 39 and row["form"] == "own class" and row["difference"] < 1e-12
