"""Sets of the Hugging Face hub, as folders hold them: all offline, and the ways in which a fetch fails."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sparsify.datasets import may_be_fetched, normalised_by_timm
from sparsify.errors import RunError, SparsifyError
from sparsify.models import build_model
from sparsify.training.data import hub_sets as module
from sparsify.training.data.datasets import count_classes, load_data
from sparsify.training.data.hub_sets import hub_sets
from sparsify.training.recipe import lookups
from sparsify.training.recipe.lookups import check_data_name
from sparsify.training.recipe.settings import DataSettings
from sparsify.training.run.train import train

datasets: Any = pytest.importorskip("datasets", reason="the package datasets is not installed")
NAMES = ["cat", "dog", "owl"]


def pictures(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 255, (count, 12, 10, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def table(count: int, **columns: Any) -> Any:
    kinds = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES), "age": datasets.Value("int64")}
    content = {"picture": pictures(count), "kind": [index % 3 for index in range(count)], "age": list(range(count))}
    for name, (kind, values) in columns.items():
        kinds[name], content[name] = kind, values
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that `save_to_disk` wrote."""
    folder = tmp_path_factory.mktemp("hub") / "pets"
    datasets.DatasetDict({"train": table(24), "test": table(6)}).save_to_disk(str(folder))
    return folder


def settings(folder: Path, **changes: Any) -> DataSettings:
    return DataSettings(name=f"hf:{folder}", **{"workers": 0, "batch_size": 8, **changes})


def test_a_saved_set_is_read_with_its_classes_and_parts(saved: Path) -> None:
    train_part, test_part = hub_sets(settings(saved))
    assert train_part.classes == NAMES and count_classes(settings(saved)) == 3
    assert (len(train_part), len(test_part)) == (24, 6)
    image, label = train_part[5]
    assert label == 2 and np.array_equal(np.asarray(image), np.asarray(pictures(24)[5]))


def test_it_is_put_before_a_model_as_image_files_are(saved: Path) -> None:
    data = load_data(settings(saved, image_size=32, limit=12), build_model("timm:test_resnet", num_classes=3), seed=1)
    assert (data.train_count, data.test_count, data.num_classes, data.input_shape) == (12, 6, 3, (3, 32, 32))
    assert data.preprocessing is not None and list(data.preprocessing.classes or ()) == NAMES
    first, again = (next(data.train.epoch(3)) for _ in range(2))
    assert first[0].shape == (8, 3, 32, 32) and torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_trains_on_it(saved: Path, tmp_path: Path, workers: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    declared = {"data": settings(saved, workers=workers, image_size=16).model_dump(), "train": {"epochs": 1}}
    result = train(declared | {"train": {"epochs": 1, "device": "cpu"}}, out=tmp_path / "run", model=model)
    assert result.metrics["step"] == 3 and "test_accuracy" in result.metrics


def test_parquet_files_and_folders_of_images_are_read(tmp_path: Path) -> None:
    for part, count in (("train", 9), ("test", 3)):
        table(count).to_parquet(str(tmp_path / "files" / f"{part}.parquet"))
        for index, picture in enumerate(pictures(count)):
            folder = tmp_path / "images" / part / NAMES[index % 3]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index}.png")
    for name in ("files", "images"):
        found, test = hub_sets(settings(tmp_path / name, dir=str(tmp_path / "cache")))
        assert (found.classes, len(found), len(test)) == (NAMES, 9, 3), name
    assert (tmp_path / "cache").is_dir()


def test_a_test_part_by_its_usual_names_unless_one_is_told(tmp_path: Path) -> None:
    parts = {"train": table(6), "validation": table(3), "test": table(4), "extra": table(5)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    assert len(hub_sets(settings(tmp_path))[1]) == 3
    assert len(hub_sets(settings(tmp_path, test_split="extra"))[1]) == 5
    assert len(hub_sets(settings(tmp_path, train_split="test"))[0]) == 4
    with pytest.raises(SparsifyError, match=r"data.test_split: .* has no part 'tets'; did you mean 'test'\?"):
        hub_sets(settings(tmp_path, test_split="tets"))


def test_a_column_of_whole_numbers_can_be_the_classes(saved: Path, tmp_path: Path) -> None:
    assert hub_sets(settings(saved, label="age"))[0].classes == [str(value) for value in range(24)]
    assert len(hub_sets(settings(saved, label="age", num_classes=30))[0].classes) == 30
    with pytest.raises(SparsifyError, match=r"data.label: no column 'kimd'; did you mean 'kind'\? \(it has picture"):
        hub_sets(settings(saved, label="kimd"))
    words = table(6, word=(datasets.Value("string"), list("abcabc")))
    datasets.DatasetDict({"train": words, "test": words}).save_to_disk(str(tmp_path))
    with pytest.raises(SparsifyError, match="column 'word' of .* has no whole numbers.*class_encode_column"):
        hub_sets(settings(tmp_path, label="word"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: table(3), "has no parts"),
        (lambda: {"train": table(3)}, r"data.test_split: .* has no part 'validation'"),
        (lambda: {"train": table(3), "test": table(0)}, "is empty|cannot be read"),
        (lambda: both(table(3).remove_columns("picture")), r"has no column of images; it has: kind, age"),
        (lambda: both(table(3).remove_columns("kind")), r"data.label: .* has no column with names of classes"),
        (lambda: both(table(3, more=(datasets.ClassLabel(names=["a"]), [0] * 3))), r"2 columns of classes \(kind"),
        (lambda: both(table(3, other=(datasets.Image(), pictures(3)))), r"2 columns of images \(picture, other\)"),
        (lambda: both(datasets.Dataset.from_dict({"picture": pictures(2), "kind": [0, 0]}).cast(
            datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat"])))), "one class, 'cat'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, parts: Any, message: str) -> None:
    made = parts()
    (datasets.DatasetDict(made) if isinstance(made, dict) else made).save_to_disk(str(tmp_path))
    with pytest.raises(SparsifyError, match=message) as caught:
        hub_sets(settings(tmp_path))
    assert "\n" not in str(caught.value)


def both(part: Any) -> dict[str, Any]:
    return {"train": part, "test": part}


def test_a_picture_that_cannot_be_read_is_told_or_left_out(tmp_path: Path) -> None:
    broken = [{"bytes": b"no picture", "path": None}, *pictures(5)]
    part = table(6, picture=(datasets.Image(), broken))
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path))
    model = build_model("timm:test_resnet", num_classes=3)
    data = load_data(settings(tmp_path, image_size=32), model)
    with pytest.raises(SparsifyError, match=r"image \d+: cannot be read as an image"):
        next(data.train.epoch(0))
    skipping = load_data(settings(tmp_path, image_size=32, skip_bad=True), model)
    with pytest.warns(UserWarning, match="data.skip_bad: 1 image left out"):
        assert len(next(skipping.train.epoch(0))[1]) == 5


def test_a_damaged_folder_is_one_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(SparsifyError, match="cannot be read: ") as caught:
        hub_sets(settings(tmp_path))
    assert not isinstance(caught.value, RunError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionError("no network"), FileNotFoundError("not on the hub")])
def test_what_cannot_be_fetched_is_the_runs_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str, *, cache_dir: str | None) -> Any:
        assert (name, cache_dir) == ("owner/pets", "kept")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RunError, match=f"'hf:owner/pets' cannot be fetched: {error}"):
        hub_sets(DataSettings(name="hf:owner/pets", dir="kept"))


def test_a_version_that_would_execute_what_it_fetches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(__version__="3.6.0"))
    with pytest.raises(SparsifyError, match=r"needs datasets 4, .* this is 3.6.0"):
        hub_sets(DataSettings(name="hf:owner/pets"))


def test_names_are_checked_before_anything_is_fetched(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf:owner/pets", "hf:pets", f"hf:{saved}"):
        check_data_name(DataSettings(name=name))
    for name, message in (
        ("hf:", "is no set of the hub"),
        ("hf:a/b/c", "is no set"),
        ("hf:./x", "no such folder './x'"),
    ):
        with pytest.raises(SparsifyError, match=message):
            check_data_name(DataSettings(name=name))
    monkeypatch.setattr(lookups, "find_spec", lambda name: None)
    with pytest.raises(SparsifyError, match="needs a package that is not installed: pip install datasets"):
        check_data_name(DataSettings(name="hf:owner/pets"))
    assert importlib.util.find_spec("datasets") is not None


def test_only_a_folder_is_known_to_be_here(saved: Path) -> None:
    assert may_be_fetched("hf:owner/pets") and not may_be_fetched(f"hf:{saved}") and not may_be_fetched("folder:x")
    assert normalised_by_timm("hf:owner/pets")
