"""A user's own data, given from Python: data sets or data loaders of torch.utils.data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, default_collate

from ...errors import SparsifyError, one_line
from ...models import FROM_PYTHON
from ...preserve import cpu_random_state, keep_random_states, seed_cpu, set_cpu_random_state
from ..batches.checked import Checked, check_batch, reason_of
from ..batches.input_size import refuses
from ..batches.resident import Batch, generator_for
from ..batches.shares import WHOLE, Share, shared
from ..batches.types import Data, Loader
from ..recipe.settings import DataSettings
from .bad_images import dead_workers
from .image_files import FileLoader

_ENDED: Any = object()
# Settings of how images are found and augmented, which a user's own data do themselves.
_NOT_OURS = (
    "dir",
    "image_size",
    "crop_padding",
    "padding_mode",
    "flip",
    "limit",
    "skip_bad",
    "train_split",
    "test_split",
    "label",
)


def own_settings(given: Any, settings: DataSettings) -> DataSettings:
    """Return the data section of a run with data given from Python: named after their class, sized as their loader.

    Raises SparsifyError for anything but data, and for settings that these data would not follow.
    """
    train, test = _pair(given)
    source = train.dataset if isinstance(train, DataLoader) else train
    _check_settings(settings, _NOT_OURS)
    changed: dict[str, Any] = {"name": f"{FROM_PYTHON}{type(source).__name__}"}
    if isinstance(train, DataLoader):
        changed |= {"workers": train.num_workers, "drop_last": bool(train.drop_last)}
        changed |= {"batch_size": train.batch_size} if train.batch_size else {}
    if isinstance(test, DataLoader) and test.batch_size:
        changed["test_batch_size"] = test.batch_size
    return settings.model_copy(update=changed)


def named_data(
    function: Callable[[str | None], Any], settings: DataSettings, *, seed: int, device: torch.device | str = "cpu"
) -> Data:
    """Return the data that a plugin's function returns for `data.dir` (or None), as `own_data` does.

    Raises SparsifyError for anything but data, and for settings that these data would not follow.
    """
    _check_settings(settings, [key for key in _NOT_OURS if key != "dir"])
    return own_data(function(settings.dir), settings, seed=seed, device=device)


def _check_settings(settings: DataSettings, keys: Sequence[str]) -> None:
    for key in keys:
        if getattr(settings, key) != DataSettings.model_fields[key].default:
            raise SparsifyError(
                f"data.{key}: data given from Python find and vary their images themselves; leave it out"
            )


def own_data(given: Any, settings: DataSettings, *, seed: int, device: torch.device | str = "cpu") -> Data:
    """Return data given from Python: a data set, a DataLoader, or a pair of either for training and test.

    They yield pairs (images, class indices). Data sets are batched, shuffled and resumed as image files are; their
    random transforms are seeded by (seed, epoch, image). A DataLoader keeps its batches and its order; each epoch, the
    global generators and its own are seeded by (seed, epoch), and resuming within an epoch reads the earlier batches
    again. The shape of an image is that of the first batch. The number of classes is `num_classes`, else the length of
    the data set's `classes`, else one more than the largest class index of the first training batch. Without test data
    nothing is evaluated.
    """
    train, test = _pair(given)
    loaders: list[Loader] = []
    for part, size, shuffle in ((train, settings.batch_size, True), (test, settings.test_batch_size, False)):
        if isinstance(part, DataLoader):
            loaders.append(GivenLoader(part, seed))
        elif part is not None:
            drop_last = settings.drop_last and shuffle
            loaders.append(FileLoader(part, size, settings.workers, seed, shuffle, drop_last, "cpu"))
    shape, seen = _first_batch(train, seed)
    sets: list[Any] = [one.dataset if isinstance(one, DataLoader) else one for one in (train, test)]
    classes = settings.num_classes or len(getattr(sets[0], "classes", ()) or ()) or seen
    checked = [Checked(loader, classes, device) for loader in loaders]
    train_count, test_count = (0 if one is None else len(one) for one in sets)
    return Data(
        settings.name, classes, shape, checked[0], checked[1] if test is not None else None, train_count, test_count
    )


def check_takes(model: nn.Module, data: Data) -> None:
    """Raise SparsifyError, with the model's error, if it does not take images like those of `data`."""
    refusal = refuses(model, data.input_shape)
    if refusal is not None:
        shape = "x".join(map(str, data.input_shape))
        raise SparsifyError(f"data: the model takes no image of {shape}: {one_line(refusal, 200)}") from refusal


@dataclass
class GivenLoader:
    """A user's DataLoader, seeded so that epoch `index` depends on the seed and the index alone."""

    loader: DataLoader[Any]
    seed: int

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, index: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield this process's `share` of each batch of epoch `index`, from batch number `start` on.

        Earlier batches are read and dropped; every process reads whole batches.
        """
        if share.size > 1 and isinstance(self.loader.sampler, DistributedSampler):
            raise SparsifyError(
                "train: data: the loader has a DistributedSampler, and its batches would be shared out twice; give it "
                "without: every batch is shared out over the processes"
            )
        yield from shared(self._epoch(index, start), share)

    def _epoch(self, index: int, start: int) -> Iterator[Batch]:
        number = generator_for(self.seed, index).initial_seed()
        drawing: tuple[Any, ...] = (self.loader, self.loader.sampler, self.loader.batch_sampler)
        for part in drawing:
            if hasattr(part, "set_epoch"):
                part.set_epoch(index)
            if isinstance(getattr(part, "generator", None), torch.Generator):
                part.generator.manual_seed(number)
        with keep_random_states():
            seed_cpu(number)
            batches = iter(self.loader)
            state = cpu_random_state()
        for position in range(len(self.loader)):
            # Between two batches the training uses the global generators.
            with keep_random_states(), dead_workers():
                set_cpu_random_state(state)
                batch = next(batches, _ENDED)
                state = cpu_random_state()
            if batch is _ENDED:
                raise SparsifyError(f"train: data: the loader ended after {position} of its {len(self.loader)} batches")
            if position >= start:
                yield batch


def _pair(given: Any) -> tuple[Any, Any]:
    parts = given if isinstance(given, tuple | list) else (given, None)
    present = [part for part in parts if part is not None]
    if len(parts) == 2 and parts[0] is not None and all(isinstance(part, Dataset | DataLoader) for part in present):
        for part, which in zip(parts, ("training", "test"), strict=True):
            if part is not None:
                _check_length(part, which)
        return parts[0], parts[1]
    kinds = f"({', '.join(type(part).__name__ for part in parts)})" if parts is given else type(given).__name__
    raise SparsifyError(
        f"train: data is {kinds}; it is a torch.utils.data.Dataset or DataLoader, or a pair of them (training, test)"
    )


def _check_length(part: Any, which: str) -> None:
    source = part.dataset if isinstance(part, DataLoader) else part
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
        lacks = "is iterable alone" if hasattr(source, "__len__") else "has no length"
        raise SparsifyError(
            f"train: data: {type(source).__name__} {lacks}, so that no step of an epoch can be found again; "
            "give a Dataset with __len__ and __getitem__"
        )
    try:
        count = len(part)
    except TypeError as error:  # of a sampler
        raise SparsifyError(f"train: data: the {which} loader has no length: {one_line(error)}") from error
    if not count:
        raise SparsifyError(f"train: data: the {which} {'set is empty' if part is source else 'loader has no batch'}")
    if getattr(part, "persistent_workers", False):
        raise SparsifyError(
            "train: data: workers that persist keep random states from epoch to epoch, so that a run could not go on "
            "to the same bits; set persistent_workers=False, or give the Dataset"
        )


def _first_batch(train: Any, seed: int) -> tuple[tuple[int, ...], int]:
    """Return the shape of an image in the first training batch, and one more than its largest class index."""
    with keep_random_states():
        seed_cpu(generator_for(seed, 0).initial_seed())
        try:
            if isinstance(train, DataLoader):
                batch = next(GivenLoader(train, seed).epoch(0))
            else:
                batch = default_collate([train[index] for index in range(min(len(train), 64))])
        except SparsifyError:
            raise
        except Exception as error:
            raise SparsifyError(f"train: data: no batch can be made: {reason_of(error)}") from error
    check_batch(batch)
    images, labels = batch
    return tuple(images.shape[1:]), int(labels.max()) + 1
