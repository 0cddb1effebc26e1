"""Splitting a batch over several processes: each takes its share of the images, and each image is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


class Shared(tuple[Tensor, Tensor]):
    """A process's part of a batch, a pair (images, class indices).

    `counted` is the number of its images that count, `of` the size of the whole batch. If a batch has too few images,
    some processes get images that others count, with `counted` 0: all of them compute at every step.
    """

    counted: int
    of: int

    @classmethod
    def make(cls, images: Tensor, labels: Tensor, counted: int, of: int) -> Shared:
        """Return a part with these values."""
        part = cls((images, labels))
        part.counted, part.of = counted, of
        return part


@dataclass(frozen=True)
class Share:
    """The share of process `rank` (from 0) of `size`."""

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> tuple[slice, int]:
        """Return the slice of `count` images that this share takes, and how many of them count.

        Sizes differ by at most one. No share has a single image, on which batch norm cannot train, unless `count` is 1.
        """
        used = min(self.size, max(1, count // 2))
        if self.rank >= used:
            return slice(0, min(2, count)), 0
        start, stop = (count * number // used for number in (self.rank, self.rank + 1))
        return slice(start, stop), stop - start


WHOLE = Share()


def shared(batches: Iterable[tuple[Tensor, Tensor]], share: Share) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `share` of every batch; the batches themselves if it is the whole."""
    if share.size == 1:
        yield from batches
        return
    for images, labels in batches:
        part, counted = share.of(len(labels))
        yield Shared.make(images[part], labels[part], counted, len(labels))


def counts(batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Return how many images of a batch, or of a part of one, count, and the size of the whole batch."""
    return (batch.counted, batch.of) if isinstance(batch, Shared) else (len(batch[1]), len(batch[1]))
