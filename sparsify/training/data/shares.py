"""Which images of a batch each of several processes takes: together every one of them, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor


class Shared(tuple[Tensor, Tensor]):
    """A process's part of a batch, a pair (images, class indices).

    `counted` is how many of its images count, `of` how many images the whole batch has. Where a batch has too few for
    every process some take images that others count, and `counted` is 0: all compute at every step.
    """

    counted: int
    of: int

    @classmethod
    def make(cls, images: Tensor, labels: Tensor, counted: int, of: int) -> Shared:
        """Return the part made of these."""
        part = cls((images, labels))
        part.counted, part.of = counted, of
        return part


@dataclass(frozen=True)
class Share:
    """The share of process `rank` (from 0) of `size`."""

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> tuple[slice, int]:
        """Return which of `count` images it takes, and how many of these count.

        Sizes differ by one at most; but no share has a single image, on which batch norm cannot train, unless `count`
        is 1.
        """
        used = min(self.size, max(1, count // 2))
        if self.rank >= used:
            return slice(0, min(2, count)), 0
        start, stop = (count * number // used for number in (self.rank, self.rank + 1))
        return slice(start, stop), stop - start


WHOLE = Share()


def shared(batches: Iterable[tuple[Tensor, Tensor]], share: Share) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this share of every batch; the batches themselves where it is the whole."""
    if share.size == 1:
        yield from batches
        return
    for images, labels in batches:
        part, counted = share.of(len(labels))
        yield Shared.make(images[part], labels[part], counted, len(labels))


def counts(batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Return how many images of a batch or a part of one count, and how many the whole batch has."""
    return (batch.counted, batch.of) if isinstance(batch, Shared) else (len(batch[1]), len(batch[1]))
