"""The training loop: a generator of plain records. It knows neither files nor screens; run.py and the CLI do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from ...errors import RunError, SparsifyError
from ...pruning.pruner import Pruner
from ..data.types import Data, Loader
from ..recipe.settings import TrainSettings
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
    """What a training works on. `train_steps` changes it in place; at every record it is fit for a checkpoint."""

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

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.settings.total_steps(self.steps_per_epoch)


def train_steps(training: Training) -> Iterator[Record]:
    """Train from `training.step` to the end; yield a record every `log_every` steps and at the end of each epoch.

    A record holds step, epoch (from 1), loss and accuracy (means since the last record), lr, sparsity, cycle and
    seconds, after an evaluation test_loss and test_accuracy, and once, after the model was shrunk, what went. Raises
    RunError when the loss is no longer a number.
    """
    settings, optimizer, accelerator = training.settings, training.optimizer, training.accelerator
    started = time.perf_counter() - training.seconds
    training.model.train()
    _start_pruner(training)
    told = training.shrunk is not None
    _shrink_if_due(training)
    tally = Tally(accelerator.device)
    while training.step < training.total_steps:
        for batches in _epoch_steps(training):
            lr = _set_learning_rate(training)
            examples = sum(len(classes) for _, classes in batches)
            for inputs, classes in batches:
                with accelerator.autocast():
                    output = training.forward(inputs)
                logits = logits_of(output, training.data.num_classes)
                loss = loss_of(output, classes, label_smoothing=settings.label_smoothing)
                accelerator.backward(loss * (len(classes) / examples))
                tally.add(loss, logits, classes)
            if settings.clip_grad_norm is not None:
                accelerator.clip_grad_norm_(training.model.parameters(), settings.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            training.step += 1
            _step_pruner(training, tally)
            _shrink_if_due(training)
            if training.step % settings.log_every == 0 or _at_an_end(training):
                record = _record(training, tally, lr)
                record |= _evaluate_if_due(training)
                if training.shrunk is not None and not told:
                    record, told = record | {"shrunk": training.shrunk}, True
                training.seconds = time.perf_counter() - started
                yield record | {"seconds": training.seconds}
                tally = Tally(accelerator.device)


class FirstBatches:
    """The first `count` batches of a loader's first epoch, the same ones each time it is iterated over."""

    def __init__(self, loader: Loader, count: int) -> None:
        self._loader, self._count = loader, count

    def __iter__(self) -> Iterator[Batch]:
        return islice(self._loader.epoch(0), self._count)


class Tally:
    """Loss and accuracy summed on the device: reading them there stops the device, so that happens once a record."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)
        self._examples = 0

    def add(self, loss: Tensor, logits: Tensor, classes: Tensor) -> None:
        """Add a batch: its mean loss, class scores (batch x classes) and true classes."""
        with torch.no_grad():
            correct = (logits.argmax(1) == classes).sum()
            self._sums += torch.stack([loss.float() * len(classes), correct.float()])
        self._examples += len(classes)

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy in [0, 1]."""
        loss, correct = self._sums.tolist()
        return loss / self._examples, correct / self._examples


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


def _set_learning_rate(training: Training) -> float:
    lr = training.settings.optimizer.lr * training.lr_factor(training.step)
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _start_pruner(training: Training) -> None:
    if training.pruner is None or training.shrunk is not None:
        return

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        inputs, classes = batch
        return loss_of(model(inputs), classes, label_smoothing=training.settings.label_smoothing)

    training.pruner.start(FirstBatches(training.data.train, _SCORED_BATCHES), loss_fn)


def _step_pruner(training: Training, tally: Tally) -> None:
    if training.pruner is None or training.shrunk is not None:
        return
    try:
        training.pruner.step()
    except SparsifyError as error:
        # Scores that are not numbers come from weights that are not: then the training failed, not the criterion.
        _check_finite(training, tally.means()[0])
        if not all(bool(parameter.isfinite().all()) for parameter in training.model.parameters()):
            where = f"after step {training.step} of {training.total_steps}"
            raise RunError(f"the weights are no longer numbers {where}; {_advice(training)}") from error
        raise


def _shrink_if_due(training: Training) -> None:
    pruner = training.pruner
    if pruner is not None and pruner.pruning.shrink and pruner.finished and training.shrunk is None:
        shrink_training(training)


def _record(training: Training, tally: Tally, lr: float) -> Record:
    loss, accuracy = tally.means()
    _check_finite(training, loss)
    pruner = training.pruner
    return {
        "step": training.step,
        "epoch": (training.step - 1) // training.steps_per_epoch + 1,
        "loss": loss,
        "accuracy": accuracy,
        "lr": lr,
        "sparsity": pruner.sparsity if pruner else training.sparsity,
        "cycle": pruner.cycle if pruner else 0,
    }


def _check_finite(training: Training, loss: float) -> None:
    if not math.isfinite(loss):
        where = f"by step {training.step} of {training.total_steps}"
        raise RunError(f"the loss became {loss} {where}; {_advice(training)}")


def _advice(training: Training) -> str:
    lr = training.settings.optimizer.lr
    precision = training.settings.precision
    other = "" if precision == "no" else f", or train.precision=no (now {precision})"
    return f"a lower train.optimizer.lr (now {lr:g}) or train.clip_grad_norm may help{other}"


def _evaluate_if_due(training: Training) -> Record:
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
        training.data.test,
        device=training.accelerator.device,
        num_classes=training.data.num_classes,
        autocast=training.accelerator.autocast,
    )
    return {"test_loss": found.loss, "test_accuracy": found.accuracy}
