"""Data sets by name, and how their images have to look for a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
from torch import nn

from ...datasets import DATASETS
from ..recipe.lookups import check_data_name
from ..recipe.settings import DataSettings
from .input_size import input_for
from .resident import Batch, TensorLoader, View, normalisation_of

_PACKAGE = __package__.rpartition(".training")[0]


class Loader(Protocol):
    """Batches of (images, class indices); `epoch(index, start)` gives the same ones whenever it is called."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, from batch number `start` on."""
        ...


@dataclass(frozen=True)
class Data:
    """A data set as a model sees it: `input_shape` is (channels, height, width) of one image; `test` may be missing."""

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    train: Loader
    test: Loader | None
    train_count: int
    test_count: int

    @property
    def description(self) -> str:
        """One line for people: the set, its size and what the model sees."""
        seen = "x".join(map(str, self.input_shape))
        if len(self.input_shape) == 3:
            channels, height, width = self.input_shape
            seen = f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}"
        return f"{self.name}: {self.train_count:,} training and {self.test_count:,} test images of {seen}"


def count_classes(settings: DataSettings) -> int:
    """Return the number of classes without reading images. Raises SparsifyError if the set or its folder is unknown."""
    if settings.name in DATASETS:
        return DATASETS[settings.name].classes
    from .image_files import count_classes as count_in_files

    check_data_name(settings)
    return count_in_files(settings)


def load_data(settings: DataSettings, model: nn.Module, *, seed: int = 0, device: torch.device | str = "cpu") -> Data:
    """Return the data set of a recipe with images of the size and the channels that `model` takes.

    `seed` fixes order and augmentation; batches come on `device`. Raises SparsifyError for an unknown set, missing
    files, and a model that takes no image of any size.
    """
    check_data_name(settings)
    if settings.name not in DATASETS:
        from .image_files import load_image_files

        return load_image_files(settings, model, seed=seed, device=device)
    row = DATASETS[settings.name]
    module, _, function = row.reader.partition(":")
    train, test = getattr(import_module(f".{module}", _PACKAGE), function)(settings.dir)
    channels, size = input_for(model, (row.channels, row.image_size), image_size=settings.image_size)
    crop = settings.crop_padding if settings.crop_padding is not None else row.crop_padding
    flip = settings.flip if settings.flip is not None else row.flip
    view = View(size, channels, normalisation_of(train.pixels), crop, settings.padding_mode, flip)
    return Data(
        settings.name,
        row.classes,
        (channels, size, size),
        TensorLoader(
            train,
            view,
            batch_size=settings.batch_size,
            seed=seed,
            shuffle=True,
            drop_last=settings.drop_last,
            device=device,
        ),
        TensorLoader(test, view, batch_size=settings.test_batch_size, device=device),
        len(train.labels),
        len(test.labels),
    )
