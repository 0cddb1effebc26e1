import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import sparsify
from sparsify import report
from sparsify.errors import SparsifyError
from sparsify.formats.model.masks import load_masks
from sparsify.overlap import iou
from sparsify.pruning.schedules import update_plan
from sparsify.report.figures import charts, curves

from .conftest import Derive

pytest.importorskip("altair", reason="altair is not installed: pip install 'sparsify-torch[report]'")
pytest.importorskip("vl_convert", reason="vl-convert is not installed: pip install 'sparsify-torch[report]'")


def values(figure: Any) -> list[dict[str, Any]]:
    """Return all rows that a figure shows."""
    found: list[dict[str, Any]] = []

    def look(spec: Any) -> None:
        if isinstance(spec, Mapping):
            found.extend(spec.get("data", {}).get("values", []))
            found.extend(row for rows in spec.get("datasets", {}).values() for row in rows)
            for part in spec.get("layer", []):
                look(part)

    look(figure.to_dict())
    return found


def test_curves_show_every_record_and_the_schedule(finished: Path) -> None:
    run = report.read_run(finished)
    rows = values(report.accuracy(run))
    for key, what in (("accuracy", "training accuracy"), ("test_accuracy", "test accuracy")):
        expected = {record["step"]: record[key] for record in run.records if key in record}
        assert {row["step"]: row["value"] for row in rows if row.get("what") == what} == expected
    total = run.records[-1]["step"]
    plan = update_plan(run.recipe.prune, total, total // 5)
    assert curves.cycle_ends(run) == [u.step for u in plan if u.event in ("reset", "union") and u.step]
    assert "stack" in json.dumps(report.accuracy(run).to_dict())  # points of one step do not add up
    drawn = [(row["step"], row["value"]) for row in rows if row.get("what") == "sparsity"]
    saved = [update.step for update in plan if update.event == "save"]
    assert all((step, 0.8) in drawn for step in saved) and drawn[0] == (0, 0.0) and drawn[-1][0] == total
    assert all(one <= other for (one, _), (other, _) in pairwise(drawn))
    assert len({row["step"] for row in values(report.loss(run)) if row.get("what") == "test loss"}) == 5


def test_bars_and_heat_maps_have_a_mark_for_each_layer_and_cycle(finished: Path) -> None:
    run = report.read_run(finished)
    layers, masks = report.read_layers(run), report.cycle_masks(run)
    assert {row["layer"]: row["sparsity"] for row in values(report.layer_sparsity(layers))} == {
        layer.name: pytest.approx(layer.sparsity) for layer in layers.layers
    }
    kept = {row["layer"]: row["count"] for row in values(report.layer_parameters(layers)) if row["what"] == "kept"}
    assert kept == {layer.name: layer.kept for layer in layers.layers}
    assert sum(row["count"] for row in values(report.layer_multiply_adds(layers))) == sum(
        layer.multiply_adds or 0 for layer in layers.layers
    )
    files = [load_masks(finished / "masks" / f"cycle-{number}.safetensors") for number in (1, 2, 3)]
    shown = {(row["one"], row["other"]): row["iou"] for row in values(report.cycle_overlap(masks))}
    assert len(shown) == 9 and shown["cycle 1", "cycle 3"] == pytest.approx(iou(files[0], files[2]))
    assert len(values(report.layer_overlap(masks))) == 2 * len(layers.layers)


def test_comparisons_show_means_seeds_and_intervals(derive: Derive) -> None:
    more = ("  sparsity: 0.8\n", "  sparsity: 0.9\n")
    folders = [derive(f"{s}", seed=s, accuracy=a) for s, a in ((1, 0.5), (2, 0.6))]
    folders += [derive(f"{s}m", seed=s, accuracy=a, change=more) for s, a in ((1, 0.3), (2, 0.2))]
    cells = report.compare([report.read_run(folder) for folder in folders])
    rows = values(report.accuracy_over_sparsity(cells))
    assert sorted(row["accuracy"] for row in rows if "accuracy" in row) == [0.2, 0.3, 0.5, 0.6]
    assert {round(row["mean"], 6) for row in rows if "mean" in row} == {0.25, 0.55}
    row, *others = [row for row in values(report.paired_differences(cells)) if "mean" in row]
    assert all(other == row for other in others) and row["label"] == "sparsity=0.9"
    assert row["mean"] == pytest.approx(-30) and row["low"] == pytest.approx(-30 - 12.7062 * 10, rel=1e-4)
    assert report.paired_differences(cells[:1]) is None


@pytest.mark.parametrize(("name", "beginning"), [("a.png", b"\x89PNG"), ("a.SVG", b"<svg")])
def test_figures_are_written_without_a_browser(name: str, beginning: bytes, finished: Path, tmp_path: Path) -> None:
    report.save(report.sizes(report.read_run(finished).file), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(beginning)
    if name == "a.SVG":
        assert b"this file" in content and b"currentColor" not in content


def test_a_figure_that_cannot_be_written_is_one_line(finished: Path, tmp_path: Path) -> None:
    figure = report.sizes(report.read_run(finished).file)
    with pytest.raises(SparsifyError, match=r"a.gif: a figure is written as .png or .svg"):
        report.save(figure, tmp_path / "a.gif")
    with pytest.raises(SparsifyError, match="there is no folder"):
        report.save(figure, tmp_path / "nowhere" / "a.png")


def test_without_the_extra_one_line_says_what_to_install(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    with pytest.raises(SparsifyError, match=r"a figure needs altair and vl-convert: pip install 'sparsify-torch\[rep"):
        report.accuracy(report.read_run(finished))
    with pytest.raises(SparsifyError, match=r"a report needs altair and vl-convert: pip install"):
        report.write(finished, finished / "report.html")


def test_reading_runs_needs_neither_torch_nor_altair(finished: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, sparsify\nsparsify.report.read_run(sys.argv[1])\n"
        "sys.exit(bool({'torch', 'altair'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(finished)], check=False).returncode == 0


def test_names_of_the_room_are_there() -> None:
    assert all(callable(getattr(report, name)) for name in report.__all__)
    assert sparsify.report is report
    with pytest.raises(AttributeError, match="no attribute 'acuracy'"):
        _ = report.acuracy  # type: ignore[attr-defined]


def test_specs_are_json(finished: Path) -> None:
    run = report.read_run(finished)
    for figure in (report.accuracy(run), report.loss(run), report.sizes(run.file)):
        json.dumps(charts.spec(figure), allow_nan=False)
