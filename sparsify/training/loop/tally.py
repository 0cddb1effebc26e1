"""Loss and accuracy over many batches, and the batches that criteria score with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from ...processes.ranks import Ranks
from ..batches.resident import Batch
from ..batches.shares import Share, counts
from ..batches.types import Loader


class FirstBatches:
    """A share of the first `count` batches of a loader's first epoch, the same each time it is iterated over.

    Batches that other processes count are left out, unless `every` is set.
    """

    def __init__(self, loader: Loader, count: int, share: Share, *, every: bool = False) -> None:
        self._loader, self._count, self._share, self._every = loader, count, share, every

    def __iter__(self) -> Iterator[Batch]:
        batches = islice(self._loader.epoch(0, 0, self._share), self._count)
        return (batch for batch in batches if self._every or counts(batch)[0])


class Tally:
    """Loss and accuracy summed on the device: reading them synchronises it, so that happens once a record."""

    def __init__(self, sums: Tensor | None = None, examples: int = 0) -> None:
        self.sums, self.examples = sums, examples
        self._wrong: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, classes: Tensor, step: int) -> None:
        """Add a batch of step number `step`: its mean loss, class scores (batch x classes) and true classes."""
        with torch.no_grad():
            correct = (logits.argmax(1) == classes).sum()
            more = torch.stack([loss.float() * len(classes), correct.float()])
            self.sums = more if self.sums is None else self.sums.to(more.device) + more
            wrong = torch.zeros((), dtype=torch.int64, device=more.device) if self._wrong is None else self._wrong
            self._wrong = torch.where(self.sums[0].isfinite() | (wrong > 0), wrong, step)
        self.examples += len(classes)

    def of_all(self, ranks: Ranks) -> Tally:
        """Return the tally over all processes; all of them call it at once."""
        if ranks.size == 1:
            return self
        whole = Tally(ranks.sum(torch.zeros(2) if self.sums is None else self.sums.cpu()))
        each = ranks.gather((self.examples, self.first_wrong()))
        whole.examples = sum(examples for examples, _ in each)
        whole._wrong = torch.tensor(min((wrong for _, wrong in each if wrong), default=0))
        return whole

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy in [0, 1]; a batch must have been added."""
        assert self.sums is not None
        loss, correct = self.sums.tolist()
        return loss / self.examples, correct / self.examples

    def first_wrong(self) -> int:
        """Return the first step whose loss was not finite, 0 if there was none."""
        return 0 if self._wrong is None else int(self._wrong)
