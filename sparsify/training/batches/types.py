"""A data set as training sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ...preprocess import KEY, Preprocessing
from .resident import Batch
from .shares import WHOLE, Share


class Loader(Protocol):
    """Batches of (images, class indices); `epoch(index, start)` yields the same ones at every call.

    With a `share` it yields that part of each batch (`shares.Shared`).
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def epoch(self, index: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, from batch number `start` on."""
        ...


@dataclass(frozen=True)
class Data:
    """A data set as a model sees it: `input_shape` is (channels, height, width) of one image; `test` may be missing.

    `preprocessing` says how an image file becomes such an input, None where only a user's own data know.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    train: Loader
    test: Loader | None
    train_count: int
    test_count: int
    preprocessing: Preprocessing | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """Return the metadata of a saved model about its inputs: "input_shape" and, if known, KEY."""
        how = {} if self.preprocessing is None else {KEY: self.preprocessing.to_dict()}
        return {"input_shape": list(self.input_shape), **how}

    @property
    def description(self) -> str:
        """One line for people: the set, its size and what the model sees."""
        seen = "x".join(map(str, self.input_shape))
        if len(self.input_shape) == 3:
            channels, height, width = self.input_shape
            seen = f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}"
        return f"{self.name}: {self.train_count:,} training and {self.test_count:,} test images of {seen}"
