"""Image files that cannot be read: a one-line error that names the file or, with `data.skip_bad`, skipped."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Subset, default_collate

from ...errors import RunError, SparsifyError, one_line
from ...quantities import count

# What Pillow raises for damaged files, by format.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Bad:
    """An image that could not be read: its file, and why. Workers return it in place of the image."""

    file: str
    reason: str


def read_image(dataset: Any, index: int) -> Any:
    """Return the item `index` of a data set of image files, `Bad` for an image that cannot be read."""
    file = _file_of(dataset, index)
    if file is not None and not Path(file).is_file():
        # Opening a pipe would block for ever.
        return Bad(file, "not a file" if Path(file).exists() else "no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return dataset[index]
    except (Image.DecompressionBombWarning, *_UNREADABLE) as error:
        return Bad(file or f"image {index}", one_line(error, 160))


def collate(items: Sequence[Any]) -> tuple[Any, list[Bad]]:
    """Return the batch of readable `items`, None if there are none, and the unreadable ones."""
    good = [item for item in items if not isinstance(item, Bad)]
    return default_collate(good) if good else None, [item for item in items if isinstance(item, Bad)]


class Skipped:
    """Policy for unreadable images: raise SparsifyError at the first or, with `skip`, collect their files."""

    def __init__(self, *, skip: bool) -> None:
        self.skips = skip
        self.files: set[str] = set()

    def take(self, bad: Sequence[Bad]) -> None:
        """Raise or collect; warn at the 1st, 10th, 100th ... file."""
        for one in bad:
            if not self.skips:
                raise SparsifyError(
                    f"{one.file}: cannot be read as an image: {one.reason} (data.skip_bad leaves it out)"
                )
            if one.file not in self.files:
                self.files.add(one.file)
                if str(len(self.files)).strip("0") == "1":
                    left_out = f"{count(len(self.files), 'image')} left out"
                    warnings.warn(f"data.skip_bad: {left_out} so far: {one.file}: {one.reason}", stacklevel=2)


@contextmanager
def dead_workers() -> Iterator[None]:
    """Raise RunError, one line, if a worker process has died."""
    try:
        yield
    except RuntimeError as error:
        # torch has no exception type for it.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RunError(
            "data.workers: a process that reads images has died or was killed (for lack of memory?); "
            "fewer data.workers may help; --resume continues the run"
        ) from error


def _file_of(dataset: Any, index: int) -> str | None:
    if isinstance(dataset, Subset):
        return _file_of(dataset.dataset, dataset.indices[index])
    samples = getattr(dataset, "samples", None) or getattr(getattr(dataset, "reader", None), "samples", None)
    if not isinstance(samples, list | tuple) or not isinstance(samples[index], tuple):
        return None
    file = samples[index][0]
    return file if isinstance(file, str) else None
