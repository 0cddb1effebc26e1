"""When the checkpoints of a run are written, and how it stops."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import Diverged, RunError, RunStopped, RunWarning
from ...surgery.mask_state.sharding import whole_state
from ..folder.checkpoint import random_state
from ..loop.diverged import check_numbers
from ..loop.train_steps import Record, Training
from ..recipe.settings import CheckpointSettings
from ..records.log import Log
from ..records.tensorboard import layer_sparsity
from .opening import Opened
from .state import state_of

# By default a checkpoint is written at an epoch's end if the last one is old enough that writing takes at most 5 % of
# the time, and in any case after ten minutes.
_WRITING_SHARE = 0.05
_LONGEST_SECONDS = 600.0
_SECONDS = {"s": 1, "min": 60, "h": 3600}


class Keeper:
    """Writes the records and checkpoints of one run when they are due, and ends it when `stop` returns True.

    Each of several processes has one: the first decides when a checkpoint is due and writes it (the others have no
    `log` and no `lock`), and all stop when one is asked to. `save_best` is called with each record whose test accuracy
    is the best so far at the final sparsity.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        save_best: Callable[[Record], None],
        stop: Callable[[], bool],
    ) -> None:
        state = opened.state
        self._prepared, self._training = opened.prepared, opened.prepared.training
        self._ranks = self._training.ranks
        self._checkpoints, self._log, self._lock = opened.checkpoints, opened.log, opened.lock
        self._save_best, self._stop = save_best, stop
        self.last_record: Record = state.get("last_record", {})
        self._best: float | None = state.get("best")
        self._written = (self._training.step, self._training.record_due) if state else None
        self._written_at = time.perf_counter()
        self._writing_seconds = 0.0
        self._before_record: tuple[int, dict[str, Any]] | None = None

    def pause(self) -> None:
        """Write what is due between two steps; raise RunStopped if the run is to stop, there or in an evaluation."""
        training = self._training
        if training.record_due and (self._before_record is None or self._before_record[0] != training.step):
            # An interrupted evaluation is repeated on resume, from the generators as they are now.
            self._before_record = training.step, random_state()
        stop, due = self._ranks.any(self._stop(), not training.record_due and self._is_due())
        if stop:
            self._end()
        if due:
            self._write()

    def keep(self, record: Record) -> None:
        """Log `record` and write the checkpoints that are due after it."""
        training = self._training
        with self._ranks.together():
            if self._log is not None:
                self._log.write(record)
        self.last_record = record
        if not math.isfinite(record.get("test_loss", 0.0)):
            text = f"step {training.step:,}: the test loss is {record['test_loss']}; the model's scores are no numbers"
            warnings.warn(text, RunWarning, stacklevel=2)
        accuracy = record.get("test_accuracy")
        evaluated = accuracy is not None or training.step == training.total_steps
        if training.pruner is not None and evaluated:
            by_layer = layer_sparsity(training.model)  # all processes count what they have of a model in parts
            if self._log is not None:
                self._log.add(by_layer, training.step)
        final = training.pruner is None or training.pruner.finished
        if accuracy is not None and final and (self._best is None or accuracy > self._best):
            check_numbers(training)
            self._best = accuracy
            with whole_state(training.result, keep=self._ranks.first), self._ranks.together():
                if self._lock is not None:
                    self._lock.check()
                    self._save_best(record)
        [due] = self._ranks.any(self._is_due())
        if due:
            self._write()

    def stop_if_asked(self) -> None:
        """Write a checkpoint and raise RunStopped if the run is to stop."""
        [stop] = self._ranks.any(self._stop())
        if stop:
            self._end()

    def _end(self) -> None:
        if self._written != (self._training.step, self._training.record_due):
            self._write()
        raise RunStopped(f"stopped after step {self._training.step:,}")

    @contextmanager
    def naming_last_checkpoint(self) -> Iterator[None]:
        """Add the step of the last checkpoint to the message of a Diverged raised in the block."""
        try:
            yield
        except Diverged as error:
            step = self._written[0] if self._written else None
            left = "there is no checkpoint yet" if step is None else f"the checkpoint of step {step:,} stays"
            raise Diverged(f"{error}; {left}") from error.__cause__

    def _is_due(self) -> bool:
        """Return whether a checkpoint is due, by the clock of the first process."""
        training = self._training
        if not self._ranks.first or training.step == training.total_steps:
            return self._ranks.first
        since = time.perf_counter() - self._written_at
        return _is_due(training, training.settings.checkpoint, since, self._writing_seconds)

    def _write(self) -> None:
        started = time.perf_counter()
        training = self._training
        check_numbers(training)  # a state that cannot be resumed must not replace one that can
        random = self._before_record[1] if training.record_due and self._before_record else random_state()
        state = state_of(self._prepared, random)
        with self._ranks.together():
            if self._lock is not None and self._log is not None:
                self._lock.check()
                self._write_state(state, self._log)
        self._written = training.step, training.record_due
        self._written_at = time.perf_counter()
        self._writing_seconds = self._written_at - started

    def _write_state(self, state: dict[str, Any], log: Log) -> None:
        own = {"last_record": self.last_record, "best": self._best, "metrics_size": log.sync()}
        try:
            self._checkpoints.write(state | own)
        except OSError as error:
            raise RunError(f"cannot write {error.filename}: {error.strerror}") from error


def _is_due(training: Training, settings: CheckpointSettings, since: float, writing: float) -> bool:
    """Return whether a checkpoint is due `since` seconds after the last one, whose writing took `writing` seconds."""
    if settings.every is None:
        at_epoch_end = training.step % training.steps_per_epoch == 0
        return (at_epoch_end and since * _WRITING_SHARE >= writing) or since > _LONGEST_SECONDS
    number, unit = re.fullmatch(r"(\d+)(\w+)", settings.every).groups()  # type: ignore[union-attr]
    if unit in _SECONDS:
        return since >= int(number) * _SECONDS[unit]
    return training.step % (int(number) * (training.steps_per_epoch if unit == "ep" else 1)) == 0
