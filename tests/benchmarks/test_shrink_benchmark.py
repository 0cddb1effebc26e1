"""The comparison with Torch-Pruning: both sides work on a tiny model, and every failure ends in a telling row."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("torch_pruning")


def script(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def compared(model: nn.Module, **limits: Any) -> dict[str, Any]:
    limits = {"rounds": 2, "seconds": 60.0} | limits
    row: dict[str, Any] = script("shrink.models").compare(model, (torch.randn(1, 3, 8, 8),), **limits)
    return row


def test_both_halve_a_tiny_model() -> None:
    row = compared(network())
    # 3 -> 4 -> 3 -> 5 channels: convolutions with biases, batch norm, linear.
    left = (3 * 4 * 9 + 4) + 2 * 4 + (4 * 3 * 9 + 3) + (3 * 5 + 5)
    for name, parts in (("ours", {"find", "mask", "cut"}), ("peer", {"find", "cut"})):
        side = row[name]
        assert side["verdict"] == "works" and side["after"] == left and 0 < side["changed"] < 2
        assert len(side["times"]) == 2 and all(times.keys() == parts for times in side["times"])
    assert row["ours"]["difference"] < 1e-12 and row["ours"]["with_proof"] > 0
    json.dumps(row)


def test_the_model_that_is_given_stays_as_it_is() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compared(model, rounds=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_side_that_raises_or_takes_too_long_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: Any) -> Any:
        while True:
            pass

    models = script("shrink.models")
    monkeypatch.setattr(models, "peer", endless)
    row = compared(network(), seconds=1)
    assert row["peer"]["verdict"] == "fails" and row["peer"]["problem"] == "not finished in 1 s"
    assert row["ours"]["verdict"] == "works"

    def raising(*_: Any) -> Any:
        raise IndexError("index 7")

    monkeypatch.setattr(models, "peer", raising)
    assert compared(network())["peer"]["problem"] == "IndexError: index 7"


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: network(), "100.0% of the parameters are left"),
        (lambda: network()[:-1], "its outputs have other shapes"),
        (lambda: nn.Linear(4, 5), "does not run: RuntimeError: "),
    ],
)
def test_what_did_not_get_smaller_or_right_fails(wrong: Any, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script("shrink.models"), "peer", lambda *_: (wrong(), {"find": 1.0, "cut": 1.0}))
    assert compared(network())["peer"]["problem"].startswith(problem)


def test_a_cut_that_changes_the_output_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    models = script("shrink.models")
    shrink = models.shrink

    def careless(*given: Any, **options: Any) -> Any:
        report = shrink(*given, **options)
        with torch.no_grad():
            report.model[7].bias += 1e-3
        return report

    monkeypatch.setattr(models, "shrink", careless)
    row = compared(network())["ours"]
    assert row["verdict"] == "fails" and row["problem"].startswith("the cut moves outputs by")


def test_the_summary_counts_and_lists_where_we_are_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = script("shrink.summary")
    monkeypatch.setattr(summary, "TABLE", tmp_path / "shrink.csv")
    monkeypatch.setattr(script("record"), "RESULTS", tmp_path / "results.md")
    mine = {"verdict": "works", "after": 25, "changed": 0.5, "difference": 1e-15, "with_proof": 3.0}
    mine["times"] = [{"find": 1.0, "mask": 2.0, "cut": 1.0}, {"find": 1.0, "mask": 4.0, "cut": 1.0}]
    theirs = {"verdict": "works", "after": 50, "changed": 0.25, "times": [{"find": 1.0, "cut": 1.0}] * 2}
    fails = {"verdict": "fails", "problem": "IndexError: index 7", "times": []}
    rows = [
        {"model": "timm:a", "parameters": 100, "ours": mine, "peer": theirs},
        {"model": "timm:b", "parameters": 100, "ours": mine, "peer": fails},
        {"model": "torchvision:c", "verdict": "error", "problems": ["not finished in 9 s"]},
    ]
    (tmp_path / "models.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary.summarise(tmp_path / "models.jsonl")
    text = (tmp_path / "results.md").read_text()
    for line in (
        "| timm: work, of 2 | 2 | 1 |",
        "| torchvision: work, of 1 | 0 | 0 |",
        "| on the 1 of both: parameters removed, median | 75.0% | 50.0% |",
        "| seconds, median | 5 | 2 |",
        "- timm:a: 5.00 s, the peer 2.00 s (2.50)",
        "- IndexError: timm:b (1)",
        "- not finished in 9 s: torchvision:c (1)",
    ):
        assert line in text.splitlines()
    assert "without the masks, which the peer has none of: median 1.00" in text
    table = (tmp_path / "shrink.csv").read_text().splitlines()
    assert table[1].startswith("timm:a,,100,works,25,0.75,0.5,1,3,1,,works,50,0.5,0.25,1,1,,1e-15,3,2.5")
    assert len(table) == 4
