"""The data sets known by name, one row each; every list of them is made from these rows. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

# Prefixes of the data sets that timm decodes and normalises: a folder of image files, a data set of the Hugging Face
# hub (or a folder that holds one), and the readers of timm.data.
FOLDER = "folder:"
HUB = "hf:"
TIMM_READERS = ("torch/", "hfds/")


@dataclass(frozen=True)
class DataSet:
    """A data set of square images that fits in memory, with a fixed split.

    `reader` is "module:function" in the package, a function (folder) -> (training images, test images) as
    `training.batches.resident.Images`. `image_size` is in pixels; `crop_padding` and `flip` are a recipe's default
    augmentation. Images are normalised by mean and standard deviation of the training pixels, computed when they are
    read. `embedded`: the images come with the package. `white` is the largest pixel value.
    """

    classes: int
    channels: int
    image_size: int
    train_count: int
    test_count: int
    crop_padding: int
    flip: bool
    reader: str
    embedded: bool = False
    white: int = 255


# To add a data set, add a row here and a function to training/data/readers.py.
DATASETS = {
    # No flip: a mirrored digit is another symbol.
    "digits": DataSet(10, 1, 8, 1500, 297, 1, False, "training.data.readers:digits", embedded=True, white=16),
    "cifar10": DataSet(10, 3, 32, 50_000, 10_000, 4, True, "training.data.readers:cifar10"),
    "cifar100": DataSet(100, 3, 32, 50_000, 10_000, 4, True, "training.data.readers:cifar100"),
}


def known_names() -> str:
    """Return the names of data sets for a help text: "digits (embedded), ..., or a name of timm.data"."""
    names = [f"{name} (embedded)" if row.embedded else name for name, row in DATASETS.items()]
    return f"{', '.join(names)}, {FOLDER}PATH, {HUB}OWNER/NAME, or a name of timm.data"


def default_of_each(what: Callable[[DataSet], object]) -> str:
    """Return a default that depends on the data set as text, the most common first: "4 for cifar10, 1 for digits"."""
    groups: dict[str, list[str]] = {}
    for name, row in DATASETS.items():
        groups.setdefault(str(what(row)).lower(), []).append(name)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return ", ".join(f"{value} for {' and '.join(names)}" for value, names in ordered)


def normalised_by_timm(name: str) -> bool:
    """Return whether images of data set `name` are normalised as in timm; our own and the user's are not."""
    return name.startswith((FOLDER, HUB, *TIMM_READERS))


def may_be_fetched(name: str) -> bool:
    """Return whether data set `name` may be downloaded from a place that it names; ours come from fixed places."""
    return name.startswith(TIMM_READERS) or (name.startswith(HUB) and not os.path.isdir(name.removeprefix(HUB)))
