"""Image data sets of the Hugging Face hub, through its package `datasets`: downloaded by name, or read from a folder.

A folder holds what `save_to_disk` wrote, or files that `datasets` reads (parquet, or images in a folder per class).
Nothing in it is executed: `datasets` 4, which is required, dropped loading scripts.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...datasets import HUB
from ...errors import RunError, SparsifyError, did_you_mean, one_line
from ..recipe.settings import DataSettings

_TEST_SPLITS = ("validation", "test", "val")
_SAVED = ("dataset_dict.json", "dataset_info.json")


class HubImages(Dataset[Any]):
    """One part of a data set: pairs of an image, transformed if `transform` is set, and its class index."""

    def __init__(self, table: Any, image: str, label: str, classes: list[str]) -> None:
        self._table, self._image, self._label = table, image, label
        self.classes = classes
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self._table[index]
        image, label = row[self._image], row[self._label]
        if image is None or label is None:
            raise ValueError("the row has no image or no class")
        return (image if self.transform is None else self.transform(image)), int(label)


def hub_sets(settings: DataSettings) -> tuple[HubImages, HubImages]:
    """Return the training and test parts of `hf:NAME` or `hf:FOLDER`.

    Images are taken from the only image column, classes from the only ClassLabel column or the column `label`. Raises
    SparsifyError for a missing part or column, RunError for a data set that cannot be downloaded.
    """
    parts = _loaded(settings)
    train = _part(parts, settings.train_split, settings.name, "train_split")
    wanted = settings.test_split
    if wanted not in parts and wanted == DataSettings.model_fields["test_split"].default:
        wanted = next((name for name in _TEST_SPLITS if name in parts), wanted)
    test = _part(parts, wanted, settings.name, "test_split")
    image, label = _columns(train, settings)
    classes = _classes(train, label, settings)
    found = HubImages(train, image, label, classes), HubImages(test, image, label, classes)
    for part, split in zip(found, (settings.train_split, wanted), strict=True):
        if not len(part):
            raise SparsifyError(f"data.name: part '{split}' of '{settings.name}' is empty")
    return found


def _loaded(settings: DataSettings) -> Any:
    name = settings.name.removeprefix(HUB)
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise SparsifyError(f"data.name: '{settings.name}' needs a package that is not installed: {error}") from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise SparsifyError(
            f"data.name: '{settings.name}' needs datasets 4, which executes nothing; this is {datasets.__version__}"
        )
    try:
        if any(os.path.isfile(Path(name) / file) for file in _SAVED):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, cache_dir=settings.dir)
    except (ConnectionError, OSError, ValueError, RuntimeError, TypeError, LookupError) as error:
        reason = one_line(error)
        is_there = os.path.isdir(name)
        kind = RunError if isinstance(error, ConnectionError | OSError) and not is_there else SparsifyError
        raise kind(f"data.name: '{settings.name}' cannot be {'read' if is_there else 'fetched'}: {reason}") from error
    if not isinstance(found, dict):
        raise SparsifyError(f"data.name: '{settings.name}' has no parts; save a DatasetDict with train and test")
    return found


def _part(parts: Any, split: str, name: str, key: str) -> Any:
    if split not in parts:
        raise SparsifyError(
            f"data.{key}: '{name}' has no part '{split}'{did_you_mean(split, parts)} (it has {', '.join(parts)})"
        )
    return parts[split]


def _columns(table: Any, settings: DataSettings) -> tuple[str, str]:
    datasets: Any = import_module("datasets")
    columns = table.features
    images = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        found = f"{len(images)} columns of images ({', '.join(images)})" if images else "no column of images"
        raise SparsifyError(f"data.name: '{settings.name}' has {found}; it has: {', '.join(columns)}")
    if settings.label is not None:
        if settings.label not in columns:
            hint = did_you_mean(settings.label, columns)
            raise SparsifyError(f"data.label: no column '{settings.label}'{hint} (it has {', '.join(columns)})")
        return images[0], settings.label
    named = [name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
    if len(named) != 1:
        found = f"{len(named)} columns of classes ({', '.join(named)})" if named else "no column with names of classes"
        raise SparsifyError(f"data.label: '{settings.name}' has {found}; name one of {', '.join(columns)}")
    return images[0], named[0]


def _classes(table: Any, label: str, settings: DataSettings) -> list[str]:
    """Return the names of the classes: those of the column, else the numbers from 0 to the largest in it."""
    names = getattr(table.features[label], "names", None)
    if names is None:
        values = table.unique(label)
        if not values or not all(type(value) is int and value >= 0 for value in values):
            raise SparsifyError(f"data.label: column '{label}' of '{settings.name}' has no whole numbers from 0 on")
        names = [str(value) for value in range(settings.num_classes or max(values) + 1)]
    if len(names) < 2:
        raise SparsifyError(f"data.name: '{settings.name}' has one class, '{names[0]}'; it takes two to train")
    return [str(name) for name in names]
