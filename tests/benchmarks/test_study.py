import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.study import overlap, plan, report, verdict
from benchmarks.study.__main__ import write_section
from benchmarks.study.queue import folder_of, pending, work
from benchmarks.study.rows import COLUMNS, Row, add_rows, beside, read_rows, take_rows, write_finished
from benchmarks.study.study import ROOT, Study, merge, read_study
from sparsify.errors import SparsifyError
from sparsify.formats.model.masks import load_masks
from sparsify.overlap import iou, iou_by_chance, union_of
from sparsify.report.statistics import difference, mean_of
from sparsify.sweep import queue
from sparsify.training.setup.plan import plan_training

TINY = """
name: tiny
about: Two methods on the digits.
epochs: 5
seeds: [1, 2]
sparsities: [0.9]
compare: {unions: [union], baselines: [gradual], gradual: gradual}
models: {small: {name: 'cifar:resnet20', arguments: {widths: [4, 4, 8]}}}
common:
  data: {name: digits, batch_size: 500}
  train: {optimizer: {name: sgd, lr: 0.05}, log_every: 1000, device: cpu}
methods:
  union: {prune: {schedule: {name: cyclic, cycles: 3}, end: 0.9, every: 1it, after_cycles: union}}
  gradual: {prune: {scope: global, schedule: {name: cubic}, every: 1it, end: 12it}}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def timeless(rows: Sequence[Row]) -> list[dict[str, str]]:
    found = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
    return sorted(found, key=lambda row: (row["method"], row["seed"], row.get("epoch", "")))


def made_up(study: Study, **accuracies: list[float]) -> list[Row]:
    """Return rows with the given final accuracies of each method, a value for each seed; best ones are 0.1 above."""
    rows = []
    for run in study.runs:
        numbers = accuracies.get(run.method, [])
        place = study.seeds.index(run.seed)
        if place >= len(numbers):
            continue
        row = dict.fromkeys(COLUMNS, "0") | {"study": run.study, "model": run.model, "method": run.method}
        row |= {"sparsity": str(run.sparsity), "recipe": run.hash, "seed": str(run.seed), "device": "a processor"}
        rows.append(row | {"final_accuracy": str(numbers[place]), "best_accuracy": str(numbers[place] + 0.1)})
    return rows


def test_all_runs_of_a_seed_come_before_the_next_seed(study_file: Path) -> None:
    runs = read_study(study_file).runs
    assert [(run.seed, run.method) for run in runs] == [(s, m) for s in (1, 2) for m in ("union", "gradual")]
    assert [run.recipe.train.seed for run in runs] == [1, 1, 2, 2]
    assert runs[0].hash == runs[2].hash != runs[1].hash
    moved = read_study(study_file, data_dir="elsewhere", device="auto").runs
    assert moved[0].recipe.data.dir == "elsewhere"
    assert [run.key for run in moved] == [run.key for run in runs]


def test_budget_scales_epochs_and_every_length_in_steps(study_file: Path) -> None:
    run = read_study(study_file, budget=2).runs[1]
    assert run.recipe.train.epochs == 10 and run.recipe.prune is not None
    assert (run.recipe.prune.end, run.recipe.prune.every) == ("24it", "2it")
    assert run.hash != read_study(study_file).runs[1].hash
    short = read_study(study_file, budget=0.01).runs[1].recipe
    assert short.train.epochs == 1 and short.prune is not None and short.prune.every == "1it"


def test_a_section_of_another_name_is_replaced_whole() -> None:
    base = {"train": {"epochs": 3, "lr_schedule": {"name": "triangular", "up": 0.1}}}
    over = {"train": {"lr_schedule": {"name": "cosine"}}}
    assert merge(base, over) == {"train": {"epochs": 3, "lr_schedule": {"name": "cosine"}}}
    assert merge(base, {"train": {"lr_schedule": {"low": 0.5}}})["train"]["lr_schedule"]["up"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds", "seedz"), "a study has the keys"),
        (("baselines: [gradual]", "baselines: [gradal]"), "no method 'gradal'; did you mean 'gradual'"),
        (("name: cubic", "name: cubik"), "methods.gradual"),
        (("baselines", "lines"), "compare has the keys baselines, gradual, unions"),
    ],
)
def test_mistakes_in_a_study_are_told(study_file: Path, change: tuple[str, str], message: str) -> None:
    study_file.write_text(TINY.replace(*change))
    with pytest.raises(SparsifyError, match=message):
        read_study(study_file)


def test_an_unknown_study_and_a_budget_of_nothing_are_told(study_file: Path) -> None:
    with pytest.raises(SparsifyError, match=r"no such study; there are .*digits.yaml"):
        read_study(Path("digit.yaml"))
    with pytest.raises(SparsifyError, match="budget: 0 is not above 0"):
        read_study(study_file, budget=0)


@pytest.mark.parametrize(
    ("name", "count"), [("digits.yaml", 33), ("cifar100_small.yaml", 55), ("cifar100.yaml", 2 * 3 * (1 + 3 * 7))]
)
def test_every_run_of_the_shipped_studies_can_be_planned(name: str, count: int) -> None:
    study = read_study(Path(name))
    assert len({run.key for run in study.runs}) == len(study.runs) == count
    for run in study.runs:
        planned = plan_training(run.recipe)
        assert planned.total_steps == planned.steps_per_epoch * study.epochs
        if run.recipe.prune is not None:
            assert run.recipe.prune.sparsity == run.sparsity
            assert planned.updates[-1].step < planned.total_steps
        if not (name == "cifar100.yaml" and run.method in ("union", "vanilla")):
            assert planned.lr(planned.total_steps - 1) < 1e-3 * run.recipe.train.optimizer.lr


def test_annealed_cycles_end_where_the_learning_rate_is_near_zero() -> None:
    for name in ("cifar100_small.yaml", "cifar100.yaml"):
        for run in read_study(Path(name)).runs:
            if run.method in ("union_global", "union_annealed") or (run.method, name) == (
                "union",
                "cifar100_small.yaml",
            ):
                planned = plan_training(run.recipe)
                ends = [update.step for update in planned.updates if update.event == "save"]
                assert ends and max(planned.lr(step - 1) for step in ends) < 1e-3 * run.recipe.train.optimizer.lr


def test_the_full_study_trains_the_published_recipes_as_they_are() -> None:
    from sparsify.training.recipe.read import read_recipe

    for run in read_study(Path("cifar100.yaml")).runs:
        if run.method in ("union", "vanilla"):
            published = read_recipe(ROOT / "recipes" / "cifar100" / f"{run.model}_{run.method}.yaml")
            assert run.recipe.prune is not None and published.prune is not None
            train = run.recipe.train.model_copy(update={"seed": 1, "log_every": published.train.log_every})
            assert train == published.train
            assert run.recipe.prune == published.prune.model_copy(update={"sparsity": run.sparsity})
            assert (run.recipe.model, run.recipe.data) == (published.model, published.data)


def test_differences_have_students_intervals_over_paired_seeds() -> None:
    found = difference({"1": 0.5, "2": 0.6, "3": 0.9}, {"3": 0.6, "2": 0.5, "1": 0.3, "4": 0.0})
    # Differences 0.2, 0.1, 0.3: mean 0.2, standard deviation 0.1; t(0.975, 2) = 4.302653.
    assert found is not None and found.n == 3 and found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6) and found.sign == 0
    assert difference({"1": 0.5}, {"2": 0.5}) is None
    single = difference({"1": 0.5}, {"1": 0.4})
    assert single is not None and single.half_width is None and single.sign == 0
    sure = difference({"1": 0.50, "2": 0.61}, {"1": 0.7, "2": 0.81})
    assert sure is not None and sure.sign == -1
    mean = mean_of({"1": 1.0, "2": 3.0})
    assert mean is not None and mean.mean == 2.0 and mean.n == 2
    assert mean.deviation == pytest.approx(2**0.5)
    assert mean_of({}) is None


@pytest.mark.parametrize(
    ("union", "gradual", "words"),
    [
        ([0.6, 0.7], [0.5, 0.6001], "it helps"),
        ([0.5, 0.6001], [0.6, 0.7], "it harms"),
        ([0.6, 0.5], [0.5, 0.6], "no difference can be told"),
        ([0.6], [0.5, 0.1], "one seed, which tells nothing yet"),
    ],
)
def test_the_conclusion_says_what_the_rows_say(
    study_file: Path, union: list[float], gradual: list[float], words: str
) -> None:
    study = read_study(study_file)
    text = verdict.conclusion(study, made_up(study, union=union, gradual=gradual))
    assert text.count(words) == 2 and "small at 90 %: `union` against `gradual`, the better baseline" in text


def test_the_conclusion_names_the_better_baseline_and_waits_for_rows(study_file: Path) -> None:
    study_file.write_text(TINY.replace("[gradual], g", "[gradual, vanilla], g") + "  vanilla: {prune: {end: 0}}\n")
    study = read_study(study_file)
    text = verdict.conclusion(study, made_up(study, union=[0.6, 0.6], gradual=[0.5, 0.6], vanilla=[0.6, 0.7]))
    assert "against `vanilla`" in text
    assert "of vanilla no run is finished" in verdict.conclusion(study, made_up(study, union=[0.6], gradual=[0.5]))
    assert verdict.conclusion(study, made_up(study, union=[0.6])) == ""


def test_the_conclusion_tells_each_union(study_file: Path) -> None:
    both = TINY.replace("unions: [union]", "unions: [union, again]") + "  again: {prune: {schedule: one_shot}}\n"
    study_file.write_text(both)
    study = read_study(study_file)
    text = verdict.conclusion(study, made_up(study, union=[0.6, 0.6], again=[0.4, 0.5], gradual=[0.5, 0.6]))
    assert "`union` against `gradual`" in text and "`again` against `gradual`" in text and "-10.00 points" in text


def test_the_section_is_right_with_some_of_the_rows(study_file: Path) -> None:
    study = read_study(study_file)
    text = report.section(study, made_up(study, union=[0.6, 0.7], gradual=[0.5]), [], [], [])
    assert "**Partial: 3 of 4 runs are finished.**" in text
    assert "| union | 2 | 65.00 ± 7.07 | 75.00 ± 7.07 |" in text and "| gradual | 1 | 50.00 | 60.00 |" in text
    assert "| small | 90 % | union - gradual | 1 | +10.00 (one pair) | +10.00 (one pair) |" in text
    whole = report.section(study, made_up(study, union=[0.6, 0.7], gradual=[0.5, 0.5]), [], [], [])
    assert "Partial" not in whole and "+15.00 (-48.53 to +78.53)" in whole
    assert "0 of 4 runs" in report.section(study, [], [], [], [])


def test_rows_of_an_older_form_of_a_study_are_not_counted(study_file: Path) -> None:
    study = read_study(study_file)
    rows = made_up(study, union=[0.6], gradual=[0.5])
    study_file.write_text(TINY.replace("lr: 0.05", "lr: 0.06"))
    assert report.rows_of(read_study(study_file), rows) == [] and report.rows_of(study, rows) == rows


def test_rows_of_another_checkout_are_added_once(study_file: Path, tmp_path: Path) -> None:
    study = read_study(study_file)
    here, there = tmp_path / "runs.csv", tmp_path / "other.csv"
    add_rows(here, COLUMNS, made_up(study, union=[0.6]))
    add_rows(there, COLUMNS, made_up(study, union=[0.1, 0.7]))
    take_rows(here, COLUMNS, there)
    take_rows(here, COLUMNS, there)
    assert [(row["seed"], row["final_accuracy"]) for row in read_rows(here)] == [("1", "0.6"), ("2", "0.7")]
    assert len(pending(study, here)) == 2


def test_overlap_of_masks_by_hand() -> None:
    def masks(*rows: list[int]) -> dict[str, torch.Tensor]:
        return {str(index): torch.tensor(row).bool() for index, row in enumerate(rows)}

    one, other = masks([1, 1, 0, 0], [1, 0]), masks([1, 0, 1, 0], [1, 0])
    assert iou(one, other) == pytest.approx(2 / 4)
    # By chance 2 * 2 / 4 + 1 * 1 / 2 = 1.5 of 3 and 3 are in both.
    assert iou_by_chance(one, other) == pytest.approx(1.5 / 4.5)
    union = union_of([one, other])
    assert union["0"].tolist() == [True, True, True, False] and one["0"].tolist() == [True, True, False, False]
    found = overlap.inside(masks([0, 1, 0, 1], [0, 1]), union)
    assert found["gradual_inside"] == pytest.approx(1 / 3) and found["random_inside"] == pytest.approx(4 / 6)
    assert found["random_inside_layers"] == pytest.approx((2 * 3 / 4 + 1 * 1 / 2) / 3)


def test_an_assumed_plan_counts_hours(study_file: Path) -> None:
    lines = list(plan.plan_lines(read_study(study_file), {"small": 360.0}, 1))
    assert lines[0] == "tiny: 4 runs of 5 epochs"
    assert "| small | float32, masks | 4 | 15 | 360.0 (assumed) | 2.0 |" in lines
    assert lines[-1].startswith("Together 2.0 hours")


def test_a_measured_plan_counts_an_epoch_and_its_test(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5.0, 7.0])
    records = ({"step": step, "seconds": next(seconds)} for step in (2, 4))
    monkeypatch.setattr(plan, "train_steps", lambda training: records)
    # Two steps of 1 s: an epoch of three takes 3 s, and the time of the test.
    assert 3.0 < plan.epoch_seconds(read_study(study_file).runs[0], 2) < 3.0 + 30


def script(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.study", *arguments]


@pytest.mark.slow
@pytest.mark.sample
def test_the_queue_end_to_end(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, rows, said = read_study(study_file), tmp_path / "runs.csv", list[str]()
    assert work(study, rows, tmp_path / "one", jobs=1, say=said.append) == []
    assert len(read_rows(rows)) == 4 and len(read_rows(beside(rows, "curves"))) == 4 * 5

    # Two side by side, killed at the first row and gone on with, give the same rows.
    two = tmp_path / "two_runs.csv"
    options = [str(study_file), "--jobs", "2", "--threads", "1", "--work", str(tmp_path / "two"), "--csv", str(two)]
    results = tmp_path / "results.md"
    options += ["--results", str(results)]
    killed = subprocess.Popen(script(*options), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    until(lambda: len(read_rows(two)) > 0 or killed.poll() is not None)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = read_rows(two)
    until(lambda: unlocked(study, two, tmp_path / "two"))
    subprocess.run(script(*options), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert 1 <= len(before) and read_rows(two)[: len(before)] == before
    assert timeless(read_rows(two)) == timeless(read_rows(rows))
    assert timeless(read_rows(beside(two, "curves"))) == timeless(read_rows(beside(rows, "curves")))

    # What is finished never runs again.
    monkeypatch.setattr(queue, "_start", forbidden)
    assert work(study, rows, tmp_path / "one", say=said.append) == []
    assert said[-1] == "tiny: 4 of 4 runs are finished"

    assert "4 of 4" not in results.read_text() and "Partial" not in results.read_text()
    assert (tmp_path / "tiny_sparsity.svg").exists() and (tmp_path / "tiny_steps.svg").exists()
    [first, second] = read_rows(tmp_path / "two_overlap.csv")
    assert {first["method"], second["method"]} == {"union"} and {first["seed"], second["seed"]} == {"1", "2"}
    run = study.runs[0]
    masks = [load_masks(folder_of(run, tmp_path / "two") / "masks" / f"cycle-{n}.safetensors") for n in (1, 2)]
    assert float(first["iou"]) == pytest.approx(iou(*masks), rel=1e-4)
    text = results.read_text()
    write_section(study, rows, tmp_path / "one", tmp_path / "again.md")
    assert without_seconds(text) == without_seconds((tmp_path / "again.md").read_text())


@pytest.mark.slow
@pytest.mark.sample
def test_a_failed_run_is_told_and_tried_again(study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(TINY.replace("seeds: [1, 2]", "seeds: [1]").replace("lr: 0.05", "lr: 1.0e+30"))
    study, said = read_study(study_file), list[str]()
    failed = work(study, tmp_path / "runs.csv", tmp_path / "work", jobs=2, say=said.append)
    assert sorted(run.method for run in failed) == ["gradual", "union"]
    assert sum("FAILED" in line and "a lower train.optimizer.lr" in line for line in said) == 2
    assert pending(study, tmp_path / "runs.csv") == list(study.runs)


def test_a_second_queue_in_the_same_folder_is_refused(study_file: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SparsifyError, match="another queue"):
            work(read_study(study_file), tmp_path / "runs.csv", tmp_path)


def test_a_result_whose_row_was_lost_becomes_a_row_once(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    run, rows = read_study(study_file).runs[0], tmp_path / "runs.csv"
    folder = folder_of(run, tmp_path)
    folder.mkdir()
    record = {"step": 15, "epoch": 5, "loss": 1.0, "lr": 0.1, "sparsity": 0.9, "cycle": 3, "test_loss": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 9, "loss": 3.0}) + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record | {"test_accuracy": 0.25}) + "\n")
    measures: dict[str, Any] = {"final_accuracy": 0.25, "best_epoch": 5, "device": "a processor"}
    for _ in range(2):  # the second time as if the queue had been killed between the two files
        write_finished(rows, run, folder, measures)
        [row] = read_rows(rows)
        rows.unlink()
    assert (row["final_accuracy"], row["best_epoch"], row["sparsity"]) == ("0.25", "5", "0.9")
    with beside(rows, "curves").open() as file:
        [curve] = csv.DictReader(file)
    assert (curve["sparsity"], curve["due_sparsity"], curve["test_accuracy"]) == ("0.9", "0.9", "0.25")


def forbidden(*_: object) -> None:
    raise AssertionError("a finished run was started")


def until(done: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def unlocked(study: Study, rows: Path, folder: Path) -> bool:
    """Whether the runs of a killed queue have ended, which they do by themselves."""
    import fcntl

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def without_seconds(text: str) -> list[str]:
    """Return a section's lines without the last column of its tables, and without the names of figures."""
    return [
        line.rpartition(" | ")[0] if line.endswith(" |") else line for line in text.splitlines() if ".svg" not in line
    ]
