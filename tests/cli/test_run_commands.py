"""`sparsify report`, `compare`, `diff` and `sweep`, by hand and with what is wrong."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsify as library
from cli import sweep as sweep_command
from tests.cli.conftest import Outcome
from tests.report.conftest import Derive
from tests.report.conftest import derive as derive
from tests.report.conftest import finished as finished

Run = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "linear_ramp.yaml"


def masks_file(path: Path, name: str = "0.weight", size: int = 4) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(size, 2))
    library.convert(model)
    library.set_masks(model, {name: torch.ones(2, size, dtype=torch.bool).tril()})
    library.save(model, path, format="masks")
    return path


def test_a_report_is_one_file(sparsify: Run, finished: Path, tmp_path: Path) -> None:
    for name in ("altair", "vl_convert", "jinja2"):
        pytest.importorskip(name)
    code, out, err = sparsify("report", finished, "--out", tmp_path / "r.html", "--figures", tmp_path / "figures")
    assert (code, err) == (0, "") and out.startswith(f"{tmp_path / 'r.html'}: 1 run, ")
    assert len(list((tmp_path / "figures").iterdir())) == 16 and (tmp_path / "r.html").exists()


def test_runs_are_compared_in_a_table_and_a_file(sparsify: Run, derive: Derive, tmp_path: Path) -> None:
    folders = [derive(f"{seed}", seed=seed, accuracy=0.5 + seed / 10) for seed in (1, 2)]
    folders.append(derive("more", seed=1, accuracy=0.4, change=("  sparsity: 0.8\n", "  sparsity: 0.9\n")))
    code, out, err = sparsify("compare", *folders, "--csv", tmp_path / "rows.csv")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == [
        "sparsity=0.8",
        "2",
        *lines[1].split()[2:4],
        "65.00",
        "±",
        "7.07",
        "-",
        *lines[1].split()[8:],
    ]
    assert "-20.00 (one pair)" in lines[2] and "differences from sparsity=0.8 over paired seeds" in out
    assert all(len(line) <= 100 for line in lines[:-1])
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["seed"], row["test_accuracy"]) for row in rows] == [
        ("sparsity=0.8", "1", "0.6"),
        ("sparsity=0.8", "2", "0.7"),
        ("sparsity=0.9", "1", "0.4"),
    ]


def test_masks_are_compared_layer_by_layer(sparsify: Run, finished: Path) -> None:
    cycle = finished / "masks" / "cycle-1.safetensors"
    code, out, err = sparsify("diff", finished, cycle)
    assert (code, err) == (0, "") and "stages.0.0.conv1.weight" in out and "all layers" in out and "by chance" in out
    code, text, _ = sparsify("diff", finished, cycle, "--json")
    found = json.loads(text)
    one, other = (library.load_masks(path) for path in (finished / "model.safetensors", cycle))
    layer = found["layers"][0]
    assert layer["both"] == int((one[layer["name"]] & other[layer["name"]]).sum())
    assert code == 0 and found["total"]["one"] == sum(int(mask.sum()) for mask in one.values())


MISTAKES: dict[str, tuple[list[str], str]] = {
    "report nothing": (["report"], "RUN"),
    "report no run": (["report", "nowhere"], "nowhere: no such run"),
    "report a folder": (["report", "tests"], "tests: not a run"),
    "report to no folder": (["report", "runs/a", "--out", "nowhere/r.html"], "there is no folder"),
    "report to a folder": (["report", "runs/a", "--out", "docs"], "cannot write docs"),
    "compare no run": (["compare", "nowhere"], "nowhere: no such run"),
    "compare to no folder": (["compare", "runs/a", "--csv", "nowhere/r.csv"], "there is no folder"),
    "compare to a wrong figure": (["compare", "runs/a", "--figure", "a.gif"], "--figure a.gif"),
    "diff one": (["diff", "runs/a"], "B"),
    "diff no file": (["diff", "nowhere", "nowhere"], "nowhere: no such file or run"),
    "sweep nothing": (["sweep"], "RECIPE"),
    "sweep no recipe": (["sweep", "recipes/linear_rmp.yaml"], "linear_ramp.yaml"),
    "sweep without a list": (["sweep", str(RECIPE), "--vary", "prune.sparsity=0.9"], "written KEY=[VALUE, ...]"),
    "sweep without a key": (["sweep", str(RECIPE), "--vary", "[0.9]"], "written KEY=[VALUE, ...]"),
    "sweep a wrong key": (["sweep", str(RECIPE), "--vary", "prune.sparsty=[0.9]"], "did you mean 'sparsity'"),
    "sweep a wrong value": (["sweep", str(RECIPE), "--vary", "prune.sparsity=[0.9, 1.5]"], "1.5"),
    "sweep a value twice": (["sweep", str(RECIPE), "--vary", "prune.sparsity=[0.9, 0.9]"], "a value is there twice"),
    "sweep seeds": (["sweep", str(RECIPE), "--vary", "train.seed=[1]"], "--seeds"),
    "sweep no seeds": (["sweep", str(RECIPE), "--seeds", "0"], "--seeds 0"),
    "sweep words": (["sweep", str(RECIPE), "--seeds", "a"], "--seeds a"),
    "sweep beyond": (["sweep", str(RECIPE), "--seeds", "2", "--only", "3"], "--only 3: the sweep has 2 runs"),
    "sweep both": (["sweep", str(RECIPE), "--list", "--only", "1"], "either --list or --only"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, sparsify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args, expected = MISTAKES[name]
    code, out, err = sparsify(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sparsify: ") and expected in err


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    for args in (["report", "nowhere"], ["compare", "nowhere"], ["diff", "nowhere", "b"], ["sweep", "nowhere.yaml"]):
        code = f"import sys\nfrom sparsify.cli import main\ntry:\n    main({args!r})\nfinally:\n    "
        code += "assert not {'torch', 'altair'} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_runs_and_masks_that_do_not_belong_together_are_one_line(
    sparsify: Run, derive: Derive, finished: Path, tmp_path: Path
) -> None:
    fewer = derive("fewer", change=("  limit:\n", "  limit: 100\n"))
    cut = derive("cut")
    (cut / "metrics.jsonl").unlink()
    small, large = masks_file(tmp_path / "small"), masks_file(tmp_path / "large", size=5)
    cases = {
        ("compare", finished, fewer): "accuracies on different data cannot be compared",
        ("report", finished, fewer, "--out", tmp_path / "r.html"): "accuracies on different data cannot be compared",
        ("compare", finished, finished): "give each run once",
        ("report", cut, "--out", tmp_path / "r.html"): "a run without metrics",
        ("compare", cut): "a run without metrics",
        ("diff", finished, small): "they are of different models",
        ("diff", small, large): "0.weight is of shape [2, 5] and not [2, 4]",
    }
    for args, line in cases.items():
        code, out, err = sparsify(*args)
        assert (code, out, err.count("\n")) == (2, "", 1) and line in err, err
    assert not (tmp_path / "r.html").exists()


def test_a_list_has_a_command_for_each_run(sparsify: Run) -> None:
    given = ["--vary", "prune.sparsity=[0.9, 0.98]", "--seeds", "2", "--set", "train.epochs=2", "--out", "x y"]
    code, out, err = sparsify("sweep", RECIPE, "--jobs", 3, "--list", *given)
    assert (code, err) == (0, "")
    start = f"sparsify sweep {RECIPE} --vary 'prune.sparsity=[0.9, 0.98]' --seeds 2 --set train.epochs=2 --out 'x y'"
    lines = [f"{start} --only {number}" for number in range(1, 5)]
    assert out.splitlines() == lines


def test_a_folder_with_runs_of_another_recipe_is_refused(sparsify: Run, derive: Derive, tmp_path: Path) -> None:
    derive("sparsity=0.9-seed=1")
    args = ("sweep", RECIPE, "--vary", "prune.sparsity=[0.9]", "--seeds", 1, "--out", tmp_path)
    code, _, err = sparsify(*args)
    assert code == 2 and err.count("\n") == 1 and "holds a run of another recipe" in err


def test_failed_runs_are_told_at_the_end(
    sparsify: Run, derive: Derive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_command, "_run", lambda runs, *_: runs[:2])
    code, _, err = sparsify("sweep", RECIPE, "--seeds", 3, "--out", tmp_path)
    assert code == 1 and "2 runs failed; the same command tries them again" in err


def test_no_masks_are_one_line(sparsify: Run, tmp_path: Path) -> None:
    library.save(torch.nn.Linear(2, 2), tmp_path / "dense.safetensors")
    code, _, err = sparsify("diff", tmp_path / "dense.safetensors", tmp_path / "dense.safetensors")
    assert code == 2 and err.count("\n") == 1 and "no masks" in err
