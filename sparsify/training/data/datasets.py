"""Data sets by name, with images of the size and channels that a model takes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import torch
from torch import nn

from ...datasets import DATASETS
from ...preprocess import Preprocessing
from ..batches.input_size import input_for
from ..batches.resident import Images, TensorLoader, View, normalisation_of
from ..batches.types import Data
from ..recipe.lookups import check_data_name
from ..recipe.settings import DataSettings
from . import image_files, image_sets

_PACKAGE = __package__.rpartition(".training")[0]


def count_classes(settings: DataSettings) -> int:
    """Return the number of classes without reading images. Raises SparsifyError if the set or its folder is unknown."""
    if settings.name in DATASETS:
        return DATASETS[settings.name].classes
    check_data_name(settings)
    return image_sets.count_classes(settings)


def load_data(settings: DataSettings, model: nn.Module, *, seed: int = 0, device: torch.device | str = "cpu") -> Data:
    """Return the data set of a recipe with images of the size and the channels that `model` takes.

    `seed` fixes order and augmentation; batches come on `device`. Raises SparsifyError for an unknown set, missing
    files, and a model that takes no image of any size.
    """
    check_data_name(settings)
    if settings.name not in DATASETS:
        return image_files.load_image_files(settings, model, seed=seed, device=device)
    row = DATASETS[settings.name]
    module, _, function = row.reader.partition(":")
    train, test = getattr(import_module(f".{module}", _PACKAGE), function)(settings.dir)
    channels, size = input_for(model, (row.channels, row.image_size), image_size=settings.image_size)
    crop = settings.crop_padding if settings.crop_padding is not None else row.crop_padding
    flip = settings.flip if settings.flip is not None else row.flip
    normalisation = normalisation_of(train.pixels)
    if settings.limit is not None:
        train, test = (_limited(part, settings.limit) for part in (train, test))
    view = View(size, channels, normalisation, crop, settings.padding_mode, flip)
    mean, std = (tuple((part / row.white).tolist()) for part in (normalisation.mean, normalisation.std))
    mode = "L" if row.channels == 1 else "RGB"
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
        Preprocessing(mode, size, (size, size), "bilinear", mean, std, channels, train.classes),
    )


def _limited(images: Images, limit: int) -> Images:
    chosen = torch.tensor(image_files.spread(len(images.labels), limit))
    return replace(images, pixels=images.pixels[chosen], labels=images.labels[chosen])
