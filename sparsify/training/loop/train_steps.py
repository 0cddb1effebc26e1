"""The training loop: a generator of plain records. It knows neither files nor screens; run.py and the CLI do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from ...errors import Diverged, SparsifyError
from ...pruning.pruner import Pruner
from ..data.types import Data, Loader
from ..recipe.settings import TrainSettings
from .diverged import check_loss, check_numbers
from .evaluate import evaluate, logits_of
from .loss import loss_of
from .recalibrate import recalibrate_batch_norm
from .shrink_midway import shrink_training

# Batches handed to criteria that take gradients. Lee et al. 2019 take one; a whole epoch would cost as much as one at
# every update.
_SCORED_BATCHES = 10

Record = dict[str, Any]
Batch = tuple[Tensor, Tensor]


@dataclass
class Training:
    """What a training works on. `train_steps` changes it in place; at every pause it is fit for a checkpoint."""

    model: nn.Module
    data: Data
    settings: TrainSettings
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    pruner: Pruner | None
    forward: Callable[[Tensor], Any]
    lr_factor: Callable[[int], float]
    steps_per_epoch: int
    step: int = 0
    seconds: float = 0.0
    sparsity: float = 0.0  # of the masks that the model came with, which stay where there is no pruner
    shrunk: dict[str, Any] | None = None  # what was taken out of the model, once that happened
    shrink_told: bool = False  # whether a record has told it
    tally: Tally = field(default_factory=lambda: Tally())
    record_due: bool = False  # the record of `step` is still to come

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.settings.total_steps(self.steps_per_epoch)


def train_steps(training: Training, pause: Callable[[], None] = lambda: None) -> Iterator[Record]:
    """Train from `training.step` to the end; yield a record every `log_every` steps and at the end of each epoch.

    A record holds step, epoch (from 1), loss and accuracy (means since the last record), lr, sparsity, cycle and
    seconds, after an evaluation test_loss and test_accuracy, and once, after the model was shrunk, what went. `pause`
    is called after each step, before its record, and between the batches of an evaluation: what it raises ends the
    training there. Raises Diverged when the loss is no longer a number.
    """
    started = time.perf_counter() - training.seconds
    training.model.train()
    _start_pruner(training)
    _shrink_if_due(training)
    if training.record_due:
        yield _record(training, started, pause)
    while training.step < training.total_steps:
        for batches in _epoch_steps(training):
            _step(training, batches)
            training.record_due = training.step % training.settings.log_every == 0 or _at_an_end(training)
            training.seconds = time.perf_counter() - started
            pause()
            if training.record_due:
                yield _record(training, started, pause)


def _step(training: Training, batches: list[Batch]) -> None:
    settings, optimizer, accelerator = training.settings, training.optimizer, training.accelerator
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(training, training.step)
    examples = sum(len(classes) for _, classes in batches)
    for inputs, classes in batches:
        with accelerator.autocast():
            output = training.forward(inputs)
        logits = logits_of(output, training.data.num_classes)
        loss = loss_of(output, classes, label_smoothing=settings.label_smoothing)
        accelerator.backward(loss * (len(classes) / examples))
        training.tally.add(loss, logits, classes, training.step + 1)
    if settings.clip_grad_norm is not None:
        accelerator.clip_grad_norm_(training.model.parameters(), settings.clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    training.step += 1
    _step_pruner(training)
    _shrink_if_due(training)


class FirstBatches:
    """The first `count` batches of a loader's first epoch, the same ones each time it is iterated over."""

    def __init__(self, loader: Loader, count: int) -> None:
        self._loader, self._count = loader, count

    def __iter__(self) -> Iterator[Batch]:
        return islice(self._loader.epoch(0), self._count)


class Tally:
    """Loss and accuracy summed on the device: reading them there stops the device, so that happens once a record."""

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

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy in [0, 1] of what was added; something must have been."""
        assert self.sums is not None
        loss, correct = self.sums.tolist()
        return loss / self.examples, correct / self.examples

    def first_wrong(self) -> int:
        """Return the first step whose loss was no number, 0 if there was none."""
        return 0 if self._wrong is None else int(self._wrong)


def _epoch_steps(training: Training) -> Iterator[list[Batch]]:
    """Yield each optimiser step's batches, from `training.step` to its epoch's end."""
    epoch, done = divmod(training.step, training.steps_per_epoch)
    accumulate = training.settings.accumulate
    batches = training.data.train.epoch(epoch, start=done * accumulate)
    left = training.total_steps - training.step
    for _ in range(done, min(training.steps_per_epoch, done + left)):
        yield list(islice(batches, accumulate))


def _at_an_end(training: Training) -> bool:
    """Return whether the present step ends an epoch, or the training."""
    return training.step % training.steps_per_epoch == 0 or training.step == training.total_steps


def _learning_rate(training: Training, step: int) -> float:
    return training.settings.optimizer.lr * training.lr_factor(step)


def _start_pruner(training: Training) -> None:
    if training.pruner is None or training.shrunk is not None:
        return

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        inputs, classes = batch
        return loss_of(model(inputs), classes, label_smoothing=training.settings.label_smoothing)

    training.pruner.start(FirstBatches(training.data.train, _SCORED_BATCHES), loss_fn)


def _step_pruner(training: Training) -> None:
    if training.pruner is None or training.shrunk is not None:
        return
    try:
        training.pruner.step()
    except SparsifyError as error:
        # Scores that are not numbers come from weights that are not: then the training failed, not the criterion.
        try:
            check_numbers(training)
        except Diverged as diverged:
            raise diverged from error
        raise


def _shrink_if_due(training: Training) -> None:
    pruner = training.pruner
    if pruner is not None and pruner.pruning.shrink and pruner.finished and training.shrunk is None:
        shrink_training(training)


def _record(training: Training, started: float, pause: Callable[[], None]) -> Record:
    check_loss(training)
    loss, accuracy = training.tally.means()
    pruner = training.pruner
    record: Record = {
        "step": training.step,
        "epoch": (training.step - 1) // training.steps_per_epoch + 1,
        "loss": loss,
        "accuracy": accuracy,
        "lr": _learning_rate(training, training.step - 1),
        "sparsity": pruner.sparsity if pruner else training.sparsity,
        "cycle": pruner.cycle if pruner else 0,
    }
    record |= _evaluate_if_due(training, pause)
    if training.shrunk is not None and not training.shrink_told:
        record["shrunk"], training.shrink_told = training.shrunk, True
    training.record_due, training.tally = False, Tally()
    training.seconds = time.perf_counter() - started
    return record | {"seconds": training.seconds}


def _evaluate_if_due(training: Training, pause: Callable[[], None]) -> Record:
    epoch, within = divmod(training.step, training.steps_per_epoch)
    last = training.step == training.total_steps
    if not last and (within or epoch % training.settings.evaluate_every):
        return {}
    if last and training.settings.recalibrate_batch_norm:
        batches = islice(training.data.train.epoch(training.settings.epochs), training.settings.recalibrate_batch_norm)
        recalibrate_batch_norm(training.model, batches, autocast=training.accelerator.autocast)
    if training.data.test is None:
        return {}
    found = evaluate(
        training.model,
        _with_pauses(training.data.test, pause),
        device=training.accelerator.device,
        num_classes=training.data.num_classes,
        autocast=training.accelerator.autocast,
    )
    return {"test_loss": found.loss, "test_accuracy": found.accuracy}


def _with_pauses(batches: Loader, pause: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        pause()
        yield batch
