"""Batches that a user's own code makes: checked, with its errors in a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import RunError, SparsifyError, one_line
from .resident import Batch
from .shares import WHOLE, Share, Shared, counts
from .types import Loader

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass
class Checked:
    """A loader whose batches are checked, class indices included, and moved to the device."""

    loader: Loader
    classes: int
    device: torch.device | str

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, index: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, from batch number `start` on; SparsifyError for one that does not fit."""
        for batch in _of_user(self.loader.epoch(index, start, share)):
            check_batch(batch)
            images, labels = batch
            wrong = labels[(labels < 0) | (labels >= self.classes)]
            if len(wrong):
                raise SparsifyError(
                    f"data.num_classes: the data have a class {int(wrong[0])}, but {self.classes} classes were "
                    f"expected, 0 to {self.classes - 1}; give their number here"
                )
            yield Shared.make(images.to(self.device), labels.long().to(self.device), *counts(batch))


def _of_user(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield `batches`; an error of the user's code that makes them becomes a RunError that names it."""
    try:
        yield from batches
    except SparsifyError:
        raise
    except Exception as error:
        raise RunError(f"train: data: no batch can be made: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return an error in a line: its kind and message, which a worker process puts at the end of its traceback."""
    text = str(error).strip()
    if "Original Traceback" in text:
        return one_line(text.splitlines()[-1], 200)
    return f"{type(error).__name__}: {one_line(error, 200)}" if text else type(error).__name__


def check_batch(batch: Any) -> None:
    """Raise SparsifyError for anything but a pair of images and class indices."""
    wanted = "pairs of images (floating numbers) and class indices (whole numbers), one for each image"
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        of = f" of {', '.join(type(part).__name__ for part in batch)}" if isinstance(batch, tuple | list) else ""
        raise SparsifyError(f"train: data: batches are {wanted}; this one is a {type(batch).__name__}{of}")
    images, labels = batch
    if not images.is_floating_point() or labels.dtype not in _WHOLE or labels.ndim != 1:
        got = ", ".join(f"{tuple(part.shape)} of {part.dtype}".replace("torch.", "") for part in batch)
        raise SparsifyError(f"train: data: batches are {wanted}; this one has {got}")
    if len(images) != len(labels):
        raise SparsifyError(f"train: data: a batch has {len(images)} images and {len(labels)} class indices")
