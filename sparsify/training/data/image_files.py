"""Batches of image files, from folders, the hub and timm.data, decoded and augmented by worker processes.

timm's transforms are used, but not its loader, whose order and crops depend on the number of workers and on earlier
random numbers: a run could not resume within an epoch to the same bits.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ...errors import SparsifyError
from ...preprocess import to_mode
from ...preserve import keep_random_states, seed_cpu
from ..batches.input_size import declared_size, input_for
from ..batches.resident import Batch, count_used, generator_for
from ..batches.shares import WHOLE, Share, Shared
from ..batches.types import Data
from ..recipe.settings import DataSettings
from .bad_images import Bad, Skipped, collate, dead_workers, read_image
from .image_sets import count_classes, names_of, open_sets
from .published import preprocessing_of

_LARGEST_DEFAULT = 224


def load_image_files(settings: DataSettings, model: nn.Module, *, seed: int, device: torch.device | str) -> Data:
    """Return the data set of image files as `Data`, with images of the size and the channels `model` takes.

    The size is `image_size`, else what the model was made for, else that of the first training image, at most 224.
    """
    from timm.data import create_transform, resolve_data_config

    train, test = open_sets(settings)
    size = settings.image_size or declared_size(model) or min(_LARGEST_DEFAULT, *_first_size(train, settings))
    channels, size = input_for(model, (3, size), image_size=settings.image_size)
    config = resolve_data_config({"input_size": (channels, size, size)}, model=model)
    mean, std = (tuple(config[key])[:channels] for key in ("mean", "std"))
    common = {"input_size": (channels, size, size), "mean": mean, "std": std, "interpolation": config["interpolation"]}
    mode = "L" if channels == 1 else "RGB"
    flip = 0.5 if settings.flip is not False else 0.0
    train.transform = _Converted(mode, create_transform(is_training=True, hflip=flip, **common))
    for_test = create_transform(is_training=False, crop_pct=config["crop_pct"], **common)
    test.transform = _Converted(mode, for_test)
    names, classes = names_of(train), count_classes(settings)
    train, test = (Subset(part, spread(len(part), settings.limit)) for part in (train, test))
    common = {"workers": settings.workers, "seed": seed, "device": device, "classes": classes}
    for_training, for_testing = (
        FileLoader(
            part,
            batch,
            shuffle=shuffle,
            drop_last=settings.drop_last and shuffle,
            bad=Skipped(skip=settings.skip_bad),
            **common,
        )
        for part, batch, shuffle in ((train, settings.batch_size, True), (test, settings.test_batch_size, False))
    )
    preprocessing = preprocessing_of(mode, for_test, config["interpolation"], mean, std, names)
    return Data(
        settings.name, classes, (channels, size, size), for_training, for_testing, len(train), len(test), preprocessing
    )


def _first_size(train: Any, settings: DataSettings) -> tuple[int, int]:
    """Return width and height of the first training image that can be read."""
    for index in range(len(train)):
        item = read_image(train, index)
        if not isinstance(item, Bad):
            width, height = item[0].size
            return width, height
        Skipped(skip=settings.skip_bad).take([item])
    raise SparsifyError(f"data.name: '{settings.name}' has no training image that can be read")


def spread(count: int, limit: int | None) -> list[int]:
    """Return the indices of at most `limit` of `count` images, spread evenly: data sets are sorted by class."""
    used = count if limit is None else min(limit, count)
    return [index * count // used for index in range(used)]


@dataclass
class FileLoader:
    """Batches of decoded image files on one device; `epoch(index)` depends on the seed and the index alone.

    `bad` is the policy for unreadable images; without it, errors of the data set pass through. `classes` is the number
    of classes that labels are checked against, None for no check.
    """

    dataset: Any
    batch_size: int
    workers: int
    seed: int
    shuffle: bool
    drop_last: bool
    device: torch.device | str
    bad: Skipped | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        count = len(self.dataset)
        self._used, self._length = count_used(count, self.batch_size, shuffle=self.shuffle, drop_last=self.drop_last)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, index: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield this process's `share` of each batch of epoch `index`, from batch number `start` on."""
        generator = generator_for(self.seed, index)
        count = len(self.dataset)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        if share.size > 1 and self.bad is not None and self.bad.skips:
            raise SparsifyError("data.skip_bad: several processes share out whole batches; remove the bad images first")
        whole = torch.split(order[: self._used], self.batch_size)[start:]
        parts = [(batch, *share.of(len(batch))) for batch in whole]
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.dataset, self.seed, index, files=self.bad is not None),
            batch_sampler=[batch[part].tolist() for batch, part, _ in parts],
            num_workers=self.workers,
            generator=generator,
            worker_init_fn=start_worker,
            collate_fn=None if self.bad is None else collate,
        )
        with dead_workers():
            for batch, (of, _, counted) in zip(loader, parts, strict=True):
                good = batch if self.bad is None else self._readable(self.bad, batch)
                if good is not None:
                    images, labels = good
                    counted = len(labels) if share.size == 1 else counted
                    of_all = len(labels) if share.size == 1 else len(of)
                    yield Shared.make(images.to(self.device), labels.to(self.device), counted, of_all)

    def _readable(self, bad: Skipped, batch: tuple[Any, list[Bad]]) -> Any:
        """Return the readable part of a batch, None for test images of which none is readable."""
        good, unread = batch
        bad.take(unread)
        left = 0 if good is None else len(good[1])
        if self.shuffle and unread and left < 2:
            raise SparsifyError(f"{unread[0].file}: {left} of {left + len(unread)} images of a batch can be read")
        classes = self.classes
        if good is not None and classes is not None:
            wrong = [int(one) for one in good[1] if not 0 <= one < classes]
            if wrong:
                raise SparsifyError(
                    f"data.num_classes: the data have a class {wrong[0]}, of {classes} (0 to {classes - 1})"
                )
        return good


def start_worker(_: int) -> None:
    """Prepare a worker process, which the run ends and reports on.

    It ignores signals that a terminal or a queue sends to the whole process group: the run finishes its step, then ends
    the workers. It prints no traceback when the run closes the connection, since the run says why.
    """
    sys.excepthook = _print_unless_disconnected
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _print_unless_disconnected(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


class _Seeded(Dataset[Any]):
    """A data set whose random transforms are seeded by (seed, epoch, image), whichever process runs them."""

    def __init__(self, dataset: Any, seed: int, epoch: int, *, files: bool) -> None:
        self._dataset, self._seed, self._epoch, self._files = dataset, seed, epoch, files

    def __getitem__(self, index: int) -> Any:
        with keep_random_states():
            seed_cpu(generator_for(self._seed, self._epoch, index).initial_seed())
            return read_image(self._dataset, index) if self._files else self._dataset[index]


@dataclass(frozen=True)
class _Converted:
    """A transform of images that are first converted to a colour mode."""

    mode: str
    transform: Callable[[Any], Any]

    def __call__(self, image: Any) -> Any:
        return self.transform(to_mode(image, self.mode))
