"""Reading the data sets of `sparsify.datasets`: a function each, folder -> (training images, test images)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...datasets import DATASETS
from ...errors import SparsifyError, one_line
from ..batches.resident import Images


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
    files = "data_batch_1 to data_batch_5, test_batch and batches.meta"
    return _torchvision("CIFAR10", folder, f"cifar-10-batches-py should hold the files {files}")


def cifar100(folder: str | None) -> tuple[Images, Images]:
    """Return CIFAR-100, downloaded if it is missing. Krizhevsky 2009."""
    return _torchvision("CIFAR100", folder, "cifar-100-python should hold the files train, test and meta")


def _torchvision(class_name: str, folder: str | None, needed: str) -> tuple[Images, Images]:
    from torchvision import datasets

    read = getattr(datasets, class_name)
    root = Path(folder or "data")
    try:
        parts = [read(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        # torchvision raises it for files that are missing or have the wrong checksum.
        try:
            parts = [read(root, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            where = f"data.dir: {root / needed} of {read.url}"
            raise SparsifyError(f"{where}, which cannot be downloaded ({one_line(error)})") from None
    train, test = (
        Images(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in parts
    )
    return train, test
