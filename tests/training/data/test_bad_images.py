"""Image files that cannot be read, on any platform and at any moment: one line with the file's name, or counted."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.data.bad_images import dead_workers
from sparsify.training.data.datasets import count_classes, load_data
from sparsify.training.data.image_files import FileLoader
from sparsify.training.recipe.settings import DataSettings
from tests.training.data.test_data import Takes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with four training and two test images each."""
    for part, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (number * 200, index * 20, 0)).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


def truncated(path: Path) -> None:
    # Of noise, so that the half that is there lacks rows.
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(path)
    path.write_bytes(path.read_bytes()[:4000])


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


def large(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncated, ""),
    "empty": (lambda path: path.write_bytes(b""), "cannot identify image file"),
    "not an image": (lambda path: path.write_bytes(b"hello" * 100), "cannot identify image file"),
    "the start of an image": (lambda path: path.write_bytes(path.read_bytes()[:20]), ""),
    "of another format's name": (lambda path: path.write_bytes(b"GIF89a" + bytes(10)), ""),
    "a dangling link": (dangling, "no such file"),
    "a link to itself": (loop, "no such file"),
    "gone": (lambda path: path.unlink(), "no such file"),
    "a pipe": (pipe, "not a file"),
    "a decompression bomb": (bomb, "exceeds limit"),
    "very large": (large, "exceeds limit"),
}


def data_of(folder: Path, **settings: Any) -> Any:
    given = {"batch_size": 4, "workers": 0, "image_size": 16, **settings}
    return load_data(DataSettings(name=f"folder:{folder}", **given), Takes(), seed=1)


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_image_is_one_line_with_its_name(way: str, folder: Path) -> None:
    data, path = data_of(folder), folder / "train" / "ant" / "1.png"
    damage, reason = WAYS[way]
    damage(path)
    with pytest.raises(SparsifyError) as caught:
        list(data.train.epoch(0))
    line = str(caught.value)
    assert line.startswith(f"{path}: cannot be read as an image: {reason}") or reason in line and str(path) in line
    assert "\n" not in line and line.endswith("(data.skip_bad leaves it out)") and caught.value.exit_code == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_image_is_left_out_and_counted_if_asked_for(way: str, folder: Path) -> None:
    data, path = data_of(folder, skip_bad=True), folder / "train" / "ant" / "1.png"
    WAYS[way][0](path)
    with pytest.warns(UserWarning, match=r"^data.skip_bad: 1 image left out so far: .*1\.png: ") as caught:
        labels = torch.cat([classes for _, classes in data.train.epoch(0)])
    assert len(caught) == 1 and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 1]
    assert data.train.bad.files == {str(path)}
    list(data.train.epoch(1))  # of the same file nothing is said again


def test_a_worker_tells_of_a_bad_image_in_one_line(folder: Path) -> None:
    data, path = data_of(folder, workers=1), folder / "train" / "ant" / "1.png"
    path.write_bytes(b"")
    with pytest.raises(SparsifyError, match=r"^.*1\.png: cannot be read as an image: .*\)$") as caught:
        list(data.train.epoch(0))
    assert "\n" not in str(caught.value)


def test_the_size_is_that_of_the_first_image_that_can_be_read(folder: Path) -> None:
    first = folder / "train" / "ant" / "0.png"
    first.write_bytes(b"")
    with pytest.raises(SparsifyError, match=r"0\.png: cannot be read"):
        data_of(folder, image_size=None)
    with pytest.warns(UserWarning, match="1 image left out"):
        assert data_of(folder, image_size=None, skip_bad=True).input_shape == (3, 16, 16)
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with warnings.catch_warnings(), pytest.raises(SparsifyError, match="has no training image that can be read"):
        warnings.simplefilter("ignore")
        data_of(folder, image_size=None, skip_bad=True)


def test_a_batch_without_images_is_one_line(folder: Path) -> None:
    data = data_of(folder, skip_bad=True)
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    with warnings.catch_warnings(), pytest.raises(SparsifyError, match="0 of 4 images of a batch can be read"):
        warnings.simplefilter("ignore")
        next(data.train.epoch(0))


def test_warnings_of_many_bad_images_become_rarer(folder: Path) -> None:
    data = data_of(folder, skip_bad=True, batch_size=8)
    for index in range(30):
        (folder / "val" / "ant" / f"x{index}.png").write_bytes(b"")
    data = data_of(folder, skip_bad=True, batch_size=8)
    with pytest.warns(UserWarning) as caught:
        kept = sum(len(classes) for _, classes in data.test)
    assert kept == 4 and [str(one.message).split()[1] for one in caught] == ["1", "10"]
    assert len(data.test.bad.files) == 30


def test_folders_without_images_or_of_one_class_are_refused(folder: Path) -> None:
    settings = DataSettings(name=f"folder:{folder}")
    for path in (folder / "train" / "ant").iterdir():
        path.unlink()
    with pytest.raises(SparsifyError, match=r"^data.name: .*ant"):
        count_classes(settings)
    for part in ("train", "val"):
        for path in (folder / part / "ant").iterdir():
            path.unlink()
        (folder / part / "ant").rmdir()
    with pytest.raises(SparsifyError, match="has one class, 'bee'; it takes two to train"):
        count_classes(settings)
    (folder / "train" / "x.png").mkdir()
    (folder / "val" / "x.png").mkdir()
    with pytest.raises(SparsifyError, match=r"^data.name: "):
        count_classes(settings)


def test_a_label_beyond_the_classes_is_one_line(folder: Path) -> None:
    data = load_data(
        DataSettings(name="torch/image_folder", dir=str(folder), workers=0, batch_size=8, image_size=16, num_classes=2),
        Takes(),
    )
    assert isinstance(data.train, FileLoader)
    data.train.classes = 1
    with pytest.raises(SparsifyError, match=r"data.num_classes: the data have a class 1, of 1 \(0 to 0\)"):
        next(data.train.epoch(0))


# In a process of its own: torch tells of the dead worker in a signal handler, at any later moment as well.
KILLED = """\
import os, signal, sys, torch
from sparsify.errors import RunError
from sparsify.training.data.bad_images import dead_workers
from sparsify.training.data.image_files import FileLoader

class Fatal(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 4, 4), 0

try:
    with dead_workers():
        for _ in FileLoader(Fatal(), 1, 2, 0, False, False, "cpu").epoch(0):
            pass
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_worker_that_is_killed_ends_the_run_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and done.stderr == ""
    assert done.stdout.startswith("data.workers: a process that reads images has died")


# The thread that hands tensors over calls sys.excepthook: when a run ends in mid-transfer it meets a broken pipe.
BROKEN_OFF = """\
import sys
from sparsify.training.data.image_files import start_worker

start_worker(0)
for error in (BrokenPipeError("pipe"), ConnectionResetError("reset"), EOFError("end"), ValueError("worth reading")):
    sys.excepthook(type(error), error, None)
"""


def test_a_worker_is_silent_when_the_run_breaks_off_a_transfer_and_only_then() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN_OFF], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == "ValueError: worth reading\n"


def test_errors_of_a_model_are_not_taken_for_those_of_workers() -> None:
    with pytest.raises(RuntimeError, match="mine"), dead_workers():
        raise RuntimeError("mine")


def test_images_removed_in_mid_run_end_it_in_one_line(folder: Path) -> None:
    from sparsify.training.run.train import train

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def remove(record: Any) -> None:
        for path in folder.glob("train/*/*.png"):
            path.unlink(missing_ok=True)

    recipe = {
        "model": "cifar:resnet20",
        "data": {"name": f"folder:{folder}", "workers": 0, "batch_size": 4, "image_size": 16},
        "train": {"epochs": 2, "log_every": 1, "device": "cpu"},
    }
    with pytest.raises(SparsifyError, match=r"\.png: cannot be read as an image: no such file"):
        train(recipe, out=folder / "run", model=Small(), on_record=remove)
