"""How a run goes on: from which checkpoint, under which conditions, and what it says about it."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsify.errors import RunError, RunStopped, RunWarning, SparsifyError
from sparsify.formats.io import atomic
from sparsify.training.folder import conditions, lock
from sparsify.training.folder.checkpoint import read_state
from sparsify.training.folder.checkpoint_files import Checkpoints
from sparsify.training.folder.lock import Lock
from sparsify.training.folder.run_folder import check_new, default_folder
from sparsify.training.folder.same_recipe import differences
from sparsify.training.recipe.read import parse_recipe
from sparsify.training.records import log
from sparsify.training.run.train import TrainResult, train
from tests.training.run.test_run import UNION


class Drifting(nn.Module):
    """A layer with a state that no state dict holds."""

    moved: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moved", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.moved += 1
        return x * (1 + 0.01 * self.moved)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), Drifting(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 10))


def recipe(**settings: Any) -> dict[str, Any]:
    """Return a recipe of 4 epochs of 3 steps, with a record at each epoch's end alone."""
    settings = {"epochs": 4, "log_every": 100, "device": "cpu", "checkpoint": {"every": "1it"}, **settings}
    return {"data": {"name": "digits", "batch_size": 500}, "train": settings, "prune": UNION}


def go(folder: Path, *, stop_after: int = 0, resume: bool = False, **settings: Any) -> TrainResult:
    """Train in `folder`; stop after so many steps, if any."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after

    given = None if resume and not settings else recipe(**settings)
    return train(given, out=folder, resume=resume, model=small_model(), check=False, stop=stop)


def stopped(folder: Path, steps: int, **settings: Any) -> Path:
    """Return the folder of a run that was stopped, at the latest after so many steps."""
    with pytest.raises(RunStopped):
        go(folder, stop_after=steps, **settings)
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same(one: TrainResult, other: TrainResult) -> None:
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key
    assert records(one.folder) == records(other.folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return go(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("steps", range(1, 14))
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(tmp_path: Path, whole: TrainResult, steps: int) -> None:
    # More than one question is asked at some steps: after the step, in the evaluation, and after the record.
    assert_same(whole, go(stopped(tmp_path / "run", steps), resume=True))


def test_the_two_newest_checkpoints_stay_or_as_many_as_asked(tmp_path: Path) -> None:
    for keep, steps in [(2, {11, 12}), (4, {9, 10, 11, 12})]:
        folder = tmp_path / str(keep)
        go(folder, checkpoint={"every": "1it", "keep": keep})
        kept = list((folder / "checkpoints").glob("[ls]*"))
        assert {read_state(path)["step"] for path in kept} == steps
        assert read_state(folder / "checkpoints" / "last.safetensors")["step"] == 12


@pytest.mark.parametrize(("every", "steps"), [("5it", {5, 10, 12}), ("2ep", {6, 12}), ("1h", {12}), (None, {3, 12})])
def test_checkpoints_are_written_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str | None, steps: set[int]
) -> None:
    written: set[int] = set()
    keeper = sys.modules["sparsify.training.run.keeper"]
    monkeypatch.setattr(keeper, "_WRITING_SHARE", 0.0 if every else 1e9)
    real = Checkpoints.write

    def write(self: Any, state: dict[str, Any]) -> None:
        written.add(state["step"])
        real(self, state)

    monkeypatch.setattr(Checkpoints, "write", write)
    go(tmp_path / "run", checkpoint={"every": every})
    assert written == steps if every else steps <= written <= {3, 6, 9, 12}


DAMAGE = {
    "flipped bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "header": lambda content: content.replace(b'"dtype"', b'"dtypf"', 1),
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, whole: TrainResult, name: str
) -> None:
    path = stopped(tmp_path / "run", 6) / "checkpoints" / "last.safetensors"
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.warns(RunWarning, match=r"last\.safetensors: damaged checkpoint .*; going on from step-\d+") as told:
        resumed = go(tmp_path / "run", resume=True)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert_same(whole, resumed)


def test_without_a_sound_checkpoint_a_run_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 6)
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SparsifyError, match="no sound checkpoint is left") as caught:
        go(folder, resume=True)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert "last.safetensors" in str(caught.value) and "step-" in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_does_not_push_out_a_sound_one(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 6)
    path = folder / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(RunWarning), pytest.raises(RunStopped):
        go(folder, stop_after=1, resume=True)
    for path in (folder / "checkpoints").glob("*.safetensors"):
        assert path.name == "best.safetensors" or read_state(path)["model"]
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


def test_a_disk_that_is_full_leaves_the_checkpoints_before(
    tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    written = atomic._write_all
    room = [400_000]

    def limited(descriptor: int, piece: Any) -> int:
        room[0] -= memoryview(piece).nbytes
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, piece)

    monkeypatch.setattr(atomic, "_write_all", limited)
    with pytest.raises(RunError, match="no space left") as caught:
        go(tmp_path / "run")
    assert caught.value.exit_code == 1
    assert len(list((tmp_path / "run" / "checkpoints").glob("[ls]*.safetensors"))) == 2
    monkeypatch.undo()
    assert_same(whole, go(tmp_path / "run", resume=True))


def test_another_recipe_is_refused_with_what_differs_and_what_may(tmp_path: Path, whole: TrainResult) -> None:
    folder = stopped(tmp_path / "run", 5)
    with pytest.raises(SparsifyError, match="train.epochs is 4 there and 9 here; train.seed is 1 there and 2 here"):
        go(folder, resume=True, epochs=9, seed=2)
    assert_same(whole, go(folder, resume=True, checkpoint={"every": "2h", "keep": 3}))


def test_a_recipe_edited_in_the_run_s_folder_is_not_the_checkpoint_s(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 5)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    with pytest.raises(SparsifyError, match=r"its checkpoint is of another recipe: train\.label_smoothing is 0\.0"):
        go(folder, resume=True)


def test_a_key_that_came_later_is_no_difference_at_its_default() -> None:
    given = parse_recipe({"model": "cifar:resnet20", **recipe()})
    older = "\n".join(line for line in given.to_yaml().splitlines() if "accumulate" not in line)
    assert differences(older, given) == ""
    other = parse_recipe(given, ["train.accumulate=2"])
    assert differences(older, other) == "train.accumulate is None there and 2 here"


def test_what_may_change_the_bits_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(tmp_path / "run", 5)
    before = conditions.conditions(torch.device("cpu"))
    now = {**before, "torch": "9.0", "threads": "77", "instruction set": "AVX9"}
    monkeypatch.setattr("sparsify.training.run.state.conditions", lambda *_: now)
    with pytest.warns(RunWarning, match="resumes with torch 9.0 instead of") as told:
        go(folder, resume=True)
    [message] = [str(one.message) for one in told]
    assert f"threads 77 instead of {before['threads']}" in message and "instruction set AVX9" in message


def test_a_torn_last_line_of_the_records_is_cut_and_told(tmp_path: Path, whole: TrainResult) -> None:
    folder = stopped(tmp_path / "run", 5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')
    with pytest.warns(RunWarning, match=r"metrics\.jsonl: its last line was cut short"):
        assert_same(whole, go(folder, resume=True))


def test_temporary_files_of_a_killed_run_are_removed_and_no_others(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 5)
    ours = [folder / ".0123456789abcdef.tmp", folder / "checkpoints" / ".fedcba9876543210.tmp"]
    theirs = [folder / ".notes.tmp", folder / "0123456789abcdef.tmp"]
    for path in ours + theirs:
        path.write_text("half")
    go(folder, resume=True)
    assert [path.exists() for path in ours + theirs] == [False, False, True, True]


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lock(tmp_path), pytest.raises(SparsifyError, match="this process is writing the run in it already"):
        Lock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    code = (
        "import sys; from pathlib import Path; from sparsify.training.folder.lock import Lock\n"
        "with Lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(SparsifyError, match=rf"process {holder.pid} on \S+ since .* is writing the run in it"):
            check_new(tmp_path, overwrite=True)
        holder.kill()
    check_new(tmp_path, overwrite=True)
    with Lock(tmp_path):
        pass


def test_where_there_are_no_locks_the_file_s_text_counts_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(RunWarning, match="cannot be locked"), Lock(tmp_path):
        pass
    (tmp_path / lock.NAME).write_text("process 1 on some-other-host, since 2024-05-06 07:08:09\n")
    with pytest.raises(SparsifyError, match="process 1 on some-other-host.* may be writing the run in it; remove"):
        Lock(tmp_path).__enter__()


def test_places_that_hold_no_run_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "checkpoints").write_text("")
    for place in ("file", "file/run", "loop", "loop/run", "blocked", "x" * 300):
        with warnings.catch_warnings(), pytest.raises(SparsifyError) as caught:
            go(tmp_path / place)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        with pytest.raises(SparsifyError):
            go(tmp_path / place, resume=True)
    folder = stopped(tmp_path / "run", 5)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(SparsifyError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        go(folder, resume=True)


def test_a_logger_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(log, "_CLOSING_SECONDS", 0.05)
    never = threading.Event()
    with pytest.warns(RunWarning, match="TensorBoard's events were not written within"), log.Log(tmp_path) as records:
        close = records._events.close
        monkeypatch.setattr(records._events, "close", lambda: never.wait(20))
    never.set()
    close()


def test_runs_with_other_settings_have_folders_of_their_own() -> None:
    given = parse_recipe({"name": "a", "model": "timm:test_resnet"})
    assert default_folder(given) == Path("runs/a-test_resnet-1")
    free = ["model.name=timm:test_resnet", "train.seed=1", "train.device=cpu", "train.log_every=5"]
    assert default_folder(given, free) == Path("runs/a-test_resnet-1")
    overrides = ["train.epochs=3", "prune.sparsity=0.5", "prune.sparsity=0.9"]
    assert default_folder(given, overrides) == Path("runs/a-test_resnet-1-prune.sparsity=0.9-train.epochs=3")
    one, other = (default_folder(given, [f"data.name=folder:{path}"]) for path in ("a/b", "a_b"))
    assert one != other and one.parent == other.parent == Path("runs")
    assert len(default_folder(given, [f"model.checkpoint={'x' * 400}"]).name) < 255
