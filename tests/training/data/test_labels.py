"""Folders of images with their classes in labels.csv."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sparsify.errors import SparsifyError
from sparsify.training.data.datasets import count_classes, load_data
from sparsify.training.recipe.settings import DataSettings
from tests.training.data.test_data import Takes

LABELS = {"train": ["owl", "cat", "dog", "cat"], "val": ["dog", "cat"]}


def write(path: Path, *rows: str, header: str = "file,label") -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.png, 1.png ... of each part, whose brightness is their number, and a table in each part."""
    for part, labels in LABELS.items():
        (tmp_path / part).mkdir()
        for index in range(len(labels)):
            Image.new("RGB", (16, 16), (40 * index,) * 3).save(tmp_path / part / f"{index}.png")
        write(tmp_path / part / "labels.csv", *(f"{index}.png,{label}" for index, label in enumerate(labels)))
    return tmp_path


def data_of(folder: Path, **settings: Any) -> Any:
    given = {"batch_size": 4, "workers": 0, "image_size": 16, **settings}
    return load_data(DataSettings(name=f"folder:{folder}", **given), Takes(), seed=1)


def problem(folder: Path) -> str:
    with pytest.raises(SparsifyError) as caught:
        data_of(folder)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("data.name: ")
    return text.removeprefix("data.name: ").replace(f"{folder}/", "")


def check(folder: Path) -> None:
    data = data_of(folder)
    assert data.preprocessing.classes == ("cat", "dog", "owl") and data.num_classes == 3
    assert (data.train_count, data.test_count) == (4, 2)
    [(images, classes)] = data.train.epoch(0)
    by_brightness = classes[images.mean((1, 2, 3)).argsort()]
    assert by_brightness.tolist() == [2, 0, 1, 0]
    assert torch.cat([classes for _, classes in data.test]).tolist() == [1, 0]


def test_each_part_may_have_a_table(folder: Path) -> None:
    check(folder)


def test_one_table_may_name_the_files_of_both_parts(folder: Path) -> None:
    rows = [f"{part}/{index}.png,{label}" for part in LABELS for index, label in enumerate(LABELS[part])]
    for part in LABELS:
        (folder / part / "labels.csv").unlink()
    write(folder / "labels.csv", *rows)
    check(folder)
    # Beside test, val is not read: as in folders of classes.
    (folder / "test").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "test" / "0.png")
    write(folder / "labels.csv", *rows, "test/0.png,owl")
    data = data_of(folder)
    assert torch.cat([classes for _, classes in data.test]).tolist() == [2]


def test_classes_are_those_that_a_folder_for_each_class_would_give(folder: Path) -> None:
    names = ["10", "2", "1", "ten"]
    write(folder / "train" / "labels.csv", *(f"{index}.png,{name}" for index, name in enumerate(names)))
    write(folder / "val" / "labels.csv", "0.png,2", "1.png,ten")
    for part in ("train", "val"):
        for name in names:
            (folder / "apart" / part / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "apart" / part / name / "0.png")
    assert data_of(folder).preprocessing.classes == data_of(folder / "apart").preprocessing.classes
    assert torch.cat([classes for _, classes in data_of(folder).test]).tolist() == [2, 3]


def test_tables_of_spreadsheets_are_read(folder: Path) -> None:
    text = '\ufefflabel, file\r\n"cat, wild", "0.png"\r\n\r\né , ./1.png\r\n'
    (folder / "train" / "labels.csv").write_bytes(text.encode())
    write(folder / "val" / "labels.csv", "0.png,é")
    data = data_of(folder)
    assert data.preprocessing.classes == ("cat, wild", "é") and data.train_count == 2
    assert torch.cat([classes for _, classes in data.test]).tolist() == [1]


MISTAKES: dict[str, tuple[bytes, str]] = {
    "a missing file": (b"file,label\n0.png,a\n9.png,b\n", ":3: no such file '9.png' in "),
    "a name too long": (b"file,label\n" + b"a" * 5000 + b",b\n", ":2: no such file 'aaa"),
    "an unknown column": (b"file,lable\n0.png,a\n", ":1: unknown column 'lable'; did you mean 'label'?"),
    "a further column": (b"file,label,width\n0.png,a,3\n", ":1: unknown column 'width' (known: file, label)"),
    "other delimiters": (b"file;label\n0.png;a\n", ":1: unknown column 'file;label'"),
    "no header": (b"0.png,a\n", ":1: unknown column '0.png'"),
    "one column": (b"file\n0.png\n", ":1: the first line has to be file,label; it is file"),
    "a column twice": (b"file,label,label\n0.png,a,b\n", ":1: the first line has to be file,label; it is file,label,"),
    "nothing": (b"", ":1: the first line has to be file,label; it is empty"),
    "no rows": (b"file,label\n", " has no image of "),
    "a duplicate": (b"file,label\n0.png,a\n./0.png,b\n", ":3: './0.png' stands in line 2 already"),
    "an empty label": (b"file,label\n0.png,a\n1.png, \n", ":3: the label is empty"),
    "an empty file": (b"file,label\n,a\n", ":2: the file is empty"),
    "a short row": (b"file,label\n0.png\n", ":2: 1 values, not file and label"),
    "a way out": (b"file,label\n../val/0.png,a\n", ":2: '../val/0.png' is no path to a file below "),
    "an absolute path": (b"file,label\n/etc/passwd,a\n", ":2: '/etc/passwd' is no path to a file below "),
    "an open quotation": (b'file,label\n0.png,"a\n1.png,b\n', ": not CSV: unexpected end of data"),
    "a quotation over lines": (b'file,label\n0.png,"a\n1.png,b"\n', ":3: a value goes over several lines"),
    "UTF-16": ("file,label\n0.png,a\n".encode("utf-16"), ": not UTF-8 text"),
    "Latin 1": ("file,label\n0.png,é\n".encode("latin-1"), ": not UTF-8 text"),
    "one class": (b"file,label\n0.png,dog\n1.png,dog\n", "has one class, 'dog'; it takes two to train"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(kind: str, folder: Path) -> None:
    content, expected = MISTAKES[kind]
    (folder / "train" / "labels.csv").write_bytes(content)
    if kind == "one class":
        write(folder / "val" / "labels.csv", "0.png,dog")
    assert expected in problem(folder)


def test_a_class_of_the_test_that_training_lacks_is_refused(folder: Path) -> None:
    write(folder / "val" / "labels.csv", "0.png,cat", "1.png,dgo")
    expected = "val/labels.csv:3: no training image has the label 'dgo'; did you mean 'dog'?"
    assert problem(folder) == expected
    with pytest.raises(SparsifyError, match="no training image has the label"):
        count_classes(DataSettings(name=f"folder:{folder}"))


def test_tables_in_one_part_or_in_too_many_places_are_refused(folder: Path) -> None:
    write(folder / "labels.csv", "train/0.png,cat")
    assert problem(folder).startswith("take one labels.csv, or one each in train and val; there is labels.csv, train/")
    (folder / "labels.csv").unlink()
    (folder / "val" / "labels.csv").unlink()
    assert problem(folder) == "take one labels.csv, or one each in train and val; there is train/labels.csv"


def test_a_common_table_has_images_of_both_parts_alone(folder: Path) -> None:
    for part in LABELS:
        (folder / part / "labels.csv").unlink()
    write(folder / "labels.csv", "train/0.png,cat", "train/1.png,dog")
    assert problem(folder).endswith("labels.csv has no image of val")
    (folder / "0.png").write_bytes((folder / "train" / "0.png").read_bytes())
    write(folder / "labels.csv", "train/0.png,cat", "0.png,dog")
    assert problem(folder) == "labels.csv:3: '0.png' is neither in train nor in val"


def test_missing_files_are_counted_where_bad_ones_are_left_out(folder: Path) -> None:
    (folder / "train" / "3.png").unlink()
    data = data_of(folder, skip_bad=True)
    with pytest.warns(UserWarning, match=r"1 image left out so far: .*3.png: no such file"):
        assert [len(classes) for _, classes in data.train.epoch(0)] == [3]
