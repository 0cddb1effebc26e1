"""Opening data sets of image files by name: folders, the Hugging Face hub, and what timm.data reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ...datasets import FOLDER, HUB
from ...errors import RunError, SparsifyError, one_line
from ..recipe.settings import DataSettings
from .hub_sets import hub_sets
from .labels import LABELS, labelled_sets

_TEST_FOLDERS = ("test", "val", "validation")


def open_sets(settings: DataSettings) -> tuple[Any, Any]:
    """Return the training and the test set: map-style data sets of pairs (PIL image, class index).

    Their attribute `transform`, if set, is applied to the images. Raises SparsifyError for data that are missing or do
    not fit, RunError for data that cannot be downloaded.
    """
    if settings.name.startswith(FOLDER):
        return _folder(settings)
    if settings.name.startswith(HUB):
        return hub_sets(settings)
    parts = ((settings.train_split, True), (settings.test_split, False))
    train, test = (_timm_set(settings, split, train=training) for split, training in parts)
    return train, test


def count_classes(settings: DataSettings) -> int:
    """Return the number of classes of a set of images. Raises SparsifyError if it is not known."""
    if settings.name.startswith((FOLDER, HUB)):
        return len(open_sets(settings)[0].classes)
    if settings.num_classes is not None:
        return settings.num_classes
    dataset = _timm_set(settings, settings.train_split, train=True)
    classes = getattr(dataset, "classes", None) or getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not classes:
        raise SparsifyError(f"data.num_classes: '{settings.name}' does not say how many classes it has; set it here")
    return len(classes)


def names_of(dataset: Any) -> list[str]:
    """Return the names of the classes by index, [] if the set has none."""
    classes = getattr(dataset, "classes", None)
    if classes:
        return [str(name) for name in classes]
    indices = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return [str(name) for name, _ in sorted(indices.items(), key=lambda item: item[1])]


def opened(path: str) -> Image.Image:
    """Return an image in the mode of its file: torchvision converts all to RGB, which turns 16-bit images white."""
    with Image.open(path) as image:
        image.load()
        return image


def _folder(settings: DataSettings) -> tuple[Any, Any]:
    from torchvision.datasets import ImageFolder

    root = Path(settings.name.removeprefix(FOLDER))
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise SparsifyError(
            f"data.name: '{root}' should hold folders train and test (or val), each a folder per class or {LABELS}"
        )
    parts: tuple[Any, Any] | None
    try:
        parts = labelled_sets(root / "train", test, opened, others=_TEST_FOLDERS, missing=settings.skip_bad)
        if parts is None:
            parts = ImageFolder(str(root / "train"), loader=opened), ImageFolder(str(test), loader=opened)
    except OSError as error:
        raise SparsifyError(f"data.name: {one_line(error)}") from None
    different = sorted(set(parts[0].classes) ^ set(parts[1].classes))
    if different:
        raise SparsifyError(
            f"data.name: {root / 'train'} and {test} differ in their classes: {', '.join(different[:5])}"
        )
    if len(parts[0].classes) < 2:
        raise SparsifyError(
            f"data.name: {root / 'train'} has one class, '{parts[0].classes[0]}'; it takes two to train"
        )
    return parts


def _timm_set(settings: DataSettings, split: str, *, train: bool) -> Any:
    from timm.data import create_dataset
    from torchvision.datasets import DatasetFolder

    # Only torchvision's sets take this argument; Hugging Face's are downloaded in any case.
    fetch = {"download": True} if settings.name.startswith("torch/") else {}
    try:
        found = create_dataset(settings.name, root=settings.dir or "data", split=split, is_training=train, **fetch)
    except ImportError as error:
        raise SparsifyError(f"data.name: '{settings.name}' needs a package that is not installed: {error}") from None
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise SparsifyError(f"data.name: timm cannot read '{settings.name}': {one_line(error)}") from None
    except OSError as error:
        raise RunError(f"data.name: '{settings.name}' cannot be fetched: {one_line(error)}") from None
    if hasattr(found, "input_img_mode"):
        found.input_img_mode = None  # as `opened`
    if isinstance(found, DatasetFolder):
        found.loader = opened
    return found
