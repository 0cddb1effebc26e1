"""Loss and accuracy over many batches, and the batches that criteria score with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from ...processes.ranks import Ranks
from ..data.resident import Batch
from ..data.shares import Share, counts
from ..data.types import Loader


class FirstBatches:
    """A share of the first `count` batches of a loader's first epoch, the same each time it is iterated over."""

    def __init__(self, loader: Loader, count: int, share: Share) -> None:
        self._loader, self._count, self._share = loader, count, share

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in islice(self._loader.epoch(0, 0, self._share), self._count) if counts(batch)[0])


class Tally:
    """Loss and accuracy summed on the device: reading them there stops the device, so that happens once a record."""

    def __init__(self, sums: Tensor | None = None, examples: int = 0) -> None:
        self.sums, self.examples = sums, examples

    def add(self, loss: Tensor, logits: Tensor, classes: Tensor) -> None:
        """Add a batch: its mean loss, class scores (batch x classes) and true classes."""
        with torch.no_grad():
            correct = (logits.argmax(1) == classes).sum()
            more = torch.stack([loss.float() * len(classes), correct.float()])
            self.sums = more if self.sums is None else self.sums.to(more.device) + more
        self.examples += len(classes)

    def of_all(self, ranks: Ranks) -> Tally:
        """Return what all processes have added."""
        if ranks.size == 1:
            return self
        sums = torch.zeros(2) if self.sums is None else self.sums.cpu()
        return Tally(ranks.sum(sums), sum(ranks.gather(self.examples)))

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy in [0, 1] of what was added; something must have been."""
        assert self.sums is not None
        loss, correct = self.sums.tolist()
        return loss / self.examples, correct / self.examples
