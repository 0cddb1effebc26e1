"""Reading the data sets of `sparsify.datasets`: a function each, folder -> (training images, test images)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...datasets import DATASETS
from ...errors import SparsifyError, one_line
from ..batches.resident import Images
from .fetching import ask

_FILES = {
    "cifar10": "data_batch_1 to data_batch_5, test_batch and batches.meta",
    "cifar100": "train, test and meta",
}


def digits(folder: str | None) -> tuple[Images, Images]:
    """Return the handwritten digits of the package; the first images are for training."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["images"])[:, None]
        labels = torch.from_numpy(arrays["labels"]).long()
    cut = DATASETS["digits"].train_count
    names = tuple(map(str, range(DATASETS["digits"].classes)))
    return Images(pixels[:cut], labels[:cut], names), Images(pixels[cut:], labels[cut:], names)


def cifar10(folder: str | None) -> tuple[Images, Images]:
    """Return CIFAR-10, downloaded if it is missing. Krizhevsky 2009."""
    return _torchvision("cifar10", folder)


def cifar100(folder: str | None) -> tuple[Images, Images]:
    """Return CIFAR-100, downloaded if it is missing. Krizhevsky 2009."""
    return _torchvision("cifar100", folder)


def check_place(name: str, folder: str | None) -> None:
    """Raise, as reading it would, if CIFAR is not downloaded and its place does not answer."""
    from torchvision import datasets

    read = getattr(datasets, name.upper())
    if (_root(folder) / read.filename).is_file():
        return  # it is only to be unpacked
    try:
        ask(read.url)
    except OSError as error:
        raise _missing(name, folder, error) from None


def _root(folder: str | None) -> Path:
    return Path(folder or "data")


def _missing(name: str, folder: str | None, error: Exception) -> SparsifyError:
    from torchvision import datasets

    read = getattr(datasets, name.upper())
    where = f"data.dir: {_root(folder) / read.base_folder} should hold the files {_FILES[name]} of {read.url}"
    return SparsifyError(f"{where}, which cannot be downloaded ({one_line(error)})")


def _torchvision(name: str, folder: str | None) -> tuple[Images, Images]:
    from torchvision import datasets

    read, root = getattr(datasets, name.upper()), _root(folder)
    try:
        parts = [read(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        # torchvision raises it for files that are missing or have the wrong checksum.
        try:
            parts = [read(root, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise _missing(name, folder, error) from None
    train, test = (
        Images(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in parts
    )
    return train, test
