"""The training loop: a generator of plain records. It knows neither files nor screens; run/train.py and the CLI do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from ...errors import Diverged, SparsifyError
from ...processes.ranks import ALONE, Ranks
from ...pruning.pruner import Pruner
from ..batches.resident import Batch
from ..batches.shares import Share, counts
from ..batches.types import Data
from ..recipe.settings import TrainSettings
from .average import update_average
from .diverged import check_loss, check_numbers
from .evaluate import evaluate, logits_of
from .forward import Forward, buffers_to_share
from .loss import loss_of
from .recalibrate import recalibrate_batch_norm
from .shrink_midway import shrink_training
from .tally import FirstBatches, Tally

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

# Batches for criteria that use gradients. Lee et al. 2019 take one; a whole epoch would cost an epoch at every update.
_SCORED_BATCHES = 10

Record = dict[str, Any]


@dataclass
class Training:
    """The state of a training. `train_steps` changes it in place; at every `pause` a checkpoint can be written."""

    model: nn.Module
    data: Data
    settings: TrainSettings
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    pruner: Pruner | None
    forward: Forward
    lr_factor: Callable[[int], float]
    steps_per_epoch: int
    ranks: Ranks = ALONE  # the processes that share every batch
    average: ModelEmaV3 | None = None  # of the weights, with train.ema
    step: int = 0
    seconds: float = 0.0
    sparsity: float = 0.0  # of the masks that the model came with; they stay where there is no pruner
    shrunk: dict[str, Any] | None = None  # what was removed from the model, after it was shrunk
    shrink_told: bool = False  # whether a record has reported it
    tally: Tally = field(default_factory=Tally)
    record_due: bool = False  # whether the record of `step` is still missing

    @property
    def share(self) -> Share:
        """The images of a batch that this process takes."""
        return Share(self.ranks.rank, self.ranks.size)

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a part of the model only."""
        return self.settings.shard and self.ranks.size > 1

    @property
    def processes(self) -> str:
        """The number of processes and how they hold the model, as the conditions of a run name it."""
        return f"{self.ranks.size} (train.shard)" if self.sharded else str(self.ranks.size)

    @property
    def result(self) -> nn.Module:
        """The model that is tested and saved: the average where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.settings.total_steps(self.steps_per_epoch)


def train_steps(training: Training, pause: Callable[[], None] = lambda: None) -> Iterator[Record]:
    """Train from `training.step` to the end; yield a record every `log_every` steps and at the end of each epoch.

    A record holds step, epoch (from 1), loss and accuracy (means since the last record), lr, sparsity, cycle and
    seconds; after an evaluation test_loss and test_accuracy (with test_weights = "average" for those of an average);
    and once, after a shrink, `shrunk`. `pause` is called after each step, before its record, and between the batches of
    an evaluation; an exception in it ends the training there. Raises Diverged when the loss is not finite.
    """
    started = time.perf_counter() - training.seconds
    training.model.train()
    _start_pruner(training)
    _shrink_if_due(training)
    if training.record_due:
        yield _record(training, started, pause)
    while training.step < training.total_steps:
        for batches in epoch_steps(training):
            take_step(training, batches)
            at_epoch_end = training.step % training.steps_per_epoch == 0 or training.step == training.total_steps
            training.record_due = at_epoch_end or training.step % training.settings.log_every == 0
            training.seconds = time.perf_counter() - started
            pause()
            if training.record_due:
                yield _record(training, started, pause)


def take_step(training: Training, batches: list[Batch]) -> None:
    """Take an optimiser step with the mean gradient of `batches`; update masks and shrink the model when due."""
    settings, optimizer, accelerator = training.settings, training.optimizer, training.accelerator
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(training, training.step)
    examples = sum(counts(batch)[1] for batch in batches)
    for number, batch in enumerate(batches, 1):
        (inputs, classes), (counted, _) = batch, counts(batch)
        with training.forward.gradients_stay() if number < len(batches) else nullcontext():
            with accelerator.autocast():
                output = training.forward(inputs)
            logits = logits_of(output, training.data.num_classes)
            loss = loss_of(output, classes, label_smoothing=settings.label_smoothing)
            # DDP averages the gradients of the processes; the factor makes that the mean over the whole batch.
            accelerator.backward(loss * (counted * training.ranks.size / examples))
        if counted:
            training.tally.add(loss, logits, classes, training.step + 1)
    if settings.clip_grad_norm is not None:
        accelerator.clip_grad_norm_(training.model.parameters(), settings.clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    training.step += 1
    _step_pruner(training)
    if training.average is not None:
        update_average(training.average, training.model, training.step)
    _shrink_if_due(training)


def epoch_steps(training: Training) -> Iterator[list[Batch]]:
    """Yield each optimiser step's batches, from `training.step` to its epoch's end."""
    epoch, done = divmod(training.step, training.steps_per_epoch)
    accumulate = training.settings.accumulate
    batches = training.data.train.epoch(epoch, done * accumulate, training.share)
    left = training.total_steps - training.step
    for _ in range(done, min(training.steps_per_epoch, done + left)):
        yield list(islice(batches, accumulate))


def _learning_rate(training: Training, step: int) -> float:
    return training.settings.optimizer.lr * training.lr_factor(step)


def _start_pruner(training: Training) -> None:
    if training.pruner is None or training.shrunk is not None:
        return

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        (inputs, classes), (counted, of) = batch, counts(batch)
        loss = loss_of(model(inputs), classes, label_smoothing=training.settings.label_smoothing)
        return loss if training.ranks.size == 1 else loss * (counted * training.ranks.size / of)

    # In a forward of a model in parts all processes take part, also those whose images do not count.
    batches = FirstBatches(training.data.train, _SCORED_BATCHES, training.share, every=training.sharded)
    training.pruner.start(batches, loss_fn)


def _step_pruner(training: Training) -> None:
    if training.pruner is None or training.shrunk is not None:
        return
    try:
        training.pruner.step()
    except SparsifyError as error:
        # Non-finite scores come from non-finite weights: then the training diverged, and the criterion is not at fault.
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
    loss, accuracy = training.tally.of_all(training.ranks).means()
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
        # Whole batches, so that every process computes the same statistics.
        batches = islice(training.data.train.epoch(training.settings.epochs), training.settings.recalibrate_batch_norm)
        recalibrate_batch_norm(training.result, batches, autocast=training.accelerator.autocast)
    if training.data.test is None:
        return {}
    training.ranks.take_buffers(buffers_to_share(training.result))
    found = evaluate(
        training.result,
        _with_pauses(training.data.test.epoch(0, 0, training.share), pause),
        device=training.accelerator.device,
        num_classes=training.data.num_classes,
        autocast=training.accelerator.autocast,
        ranks=training.ranks,
        sharded=training.sharded,
    )
    of_average = {} if training.average is None else {"test_weights": "average"}
    return {"test_loss": found.loss, "test_accuracy": found.accuracy, **of_average}


def _with_pauses(batches: Iterator[Batch], pause: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        pause()
        yield batch
