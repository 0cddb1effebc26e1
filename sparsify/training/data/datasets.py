"""Data sets by name, and how their images have to look for a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...errors import SparsifyError
from ..recipe.lookups import EMBEDDED, check_data_name
from ..recipe.settings import DataSettings
from . import image_files
from .input_size import input_for
from .resident import Images, TensorLoader, View, normalisation_of
from .types import Data

DIGITS_FOR_TRAINING = 1500
_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
_CROP_PADDING = {"digits": 1, "cifar10": 4, "cifar100": 4}
_CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "data_batch_1 to data_batch_5, test_batch and batches.meta"),
    "cifar100": ("CIFAR100", "cifar-100-python", "train, test and meta"),
}


def count_classes(settings: DataSettings) -> int:
    """Return the number of classes without reading images. Raises SparsifyError if the set or its folder is unknown."""
    if settings.name in _CLASSES:
        return _CLASSES[settings.name]
    check_data_name(settings)
    return image_files.count_classes(settings)


def load_data(settings: DataSettings, model: nn.Module, *, seed: int = 0, device: torch.device | str = "cpu") -> Data:
    """Return the data set of a recipe with images of the size and the channels that `model` takes.

    `seed` fixes order and augmentation; batches come on `device`. Raises SparsifyError for an unknown set, missing
    files, and a model that takes no image of any size.
    """
    check_data_name(settings)
    if settings.name not in EMBEDDED:
        return image_files.load_image_files(settings, model, seed=seed, device=device)
    train, test = _digits() if settings.name == "digits" else _cifar(settings.name, settings.dir)
    own = (train.pixels.shape[1], train.pixels.shape[2])
    channels, size = input_for(model, own, image_size=settings.image_size)
    crop = settings.crop_padding if settings.crop_padding is not None else _CROP_PADDING[settings.name]
    # A mirrored digit is another sign.
    flip = settings.flip if settings.flip is not None else settings.name != "digits"
    view = View(size, channels, normalisation_of(train.pixels), crop, settings.padding_mode, flip)
    return Data(
        settings.name,
        _CLASSES[settings.name],
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


def _digits() -> tuple[Images, Images]:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["images"])[:, None]
        labels = torch.from_numpy(arrays["labels"]).long()
    cut = DIGITS_FOR_TRAINING
    return Images(pixels[:cut], labels[:cut]), Images(pixels[cut:], labels[cut:])


def _cifar(name: str, folder: str | None) -> tuple[Images, Images]:
    from torchvision import datasets

    class_name, inner, files = _CIFAR[name]
    read = getattr(datasets, class_name)
    root = Path(folder or "data")
    try:
        parts = [read(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        # torchvision says so for files that are missing or have the wrong checksum.
        try:
            parts = [read(root, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise SparsifyError(
                f"data.dir: {root / inner} should hold the files {files} of {read.url}, "
                f"which cannot be downloaded ({reason})"
            ) from None
    train, test = (
        Images(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test
