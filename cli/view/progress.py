"""The screen of `sparsify train`: the run before it starts, its progress, and its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from .report import show_result, start_lines
from .show import count, duration, percent, say

if TYPE_CHECKING:
    from sparsify.training.run.train import TrainResult
    from sparsify.training.setup.prepare import Prepared

# Without a terminal: a line at each evaluation, but not oftener than this, at the end, and within long epochs.
_PLAIN_SECONDS = 2.0
_LONG_SECONDS = 30.0


class Screen:
    """Shows one training run: a progress bar on a terminal, plain lines elsewhere. A context manager.

    A `silent` one shows nothing: another process does.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            # With widths of their own these two stay whole in 80 columns, and the bar gives way.
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(min_width=7)),
            TextColumn("{task.fields[state]}", table_column=Column(min_width=53, no_wrap=True)),
            console=console,
            disable=not console.is_terminal or console.is_dumb_terminal,
        )
        self._task: TaskID | None = None
        self._total_steps = 0
        self._epochs = 0
        self._test_accuracy: float | None = None
        self._shown_at = float("-inf")
        self.started = False
        self._began_at = 0, 0.0  # steps and seconds of a run before this process
        self._estimated = False

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, prepared: Prepared, folder: Path) -> None:
        """Show the run before its first step."""
        self.started = True
        lines = start_lines(prepared, folder)  # in every process: each counts its part of a model in parts
        if self._silent:
            return
        training = prepared.training
        self._total_steps = training.total_steps
        self._epochs = -(-training.total_steps // training.steps_per_epoch)
        self._began_at = training.step, training.seconds
        say(*lines)
        if training.step and training.step < self._total_steps:
            say(f"going on after step {training.step:,} of {self._total_steps:,}")
        if training.step < self._total_steps:
            epoch = f"epoch {training.step // training.steps_per_epoch + 1}/{self._epochs}"
            self._task = self._bar.add_task(epoch, total=self._total_steps, completed=training.step, state="")
            self._bar.start()
        self._shown_at = time.monotonic() - _PLAIN_SECONDS

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training."""
        if self._silent:
            return
        self._test_accuracy = record.get("test_accuracy", self._test_accuracy)
        if "shrunk" in record:
            say(*record["shrunk"]["text"].splitlines())
        state = f"loss {record['loss']:.3f}  acc {percent(record['accuracy'])}"
        if self._test_accuracy is not None:
            state += f"  test {percent(self._test_accuracy)}"
        state += f"  sparsity {percent(record['sparsity'])}"
        epoch = f"epoch {record['epoch']}/{self._epochs}"
        if not self._estimated and self._done(record):  # a record of the resumed step says nothing about the speed
            self._estimated = True
            say(f"about {duration(self._left(record))} to go, by the first {count(self._done(record), 'step')}")
            sys.stdout.flush()
        if not self._bar.disable:
            assert self._task is not None
            if "test_accuracy" in record:  # finished epochs stay above the bar
                self._bar.console.print(f"{epoch}  {state}", highlight=False, markup=False)
            self._bar.update(self._task, completed=record["step"], description=epoch, state=state)
            return
        finished = record["step"] == self._total_steps
        now = time.monotonic()
        since = now - self._shown_at
        if finished or since >= (_PLAIN_SECONDS if "test_accuracy" in record else _LONG_SECONDS):
            self._shown_at = now
            left = "" if finished else f", {duration(self._left(record))} left"
            say(f"{epoch}  {state}  {duration(record['seconds'])}{left}")
            sys.stdout.flush()

    def _done(self, record: Mapping[str, Any]) -> int:
        """Return the steps done by this process."""
        return int(record["step"]) - self._began_at[0]

    def _left(self, record: Mapping[str, Any]) -> float:
        """Return the seconds left at the mean time of a step so far, evaluations included."""
        seconds = record["seconds"] - self._began_at[1]
        return float(seconds / max(1, self._done(record)) * (self._total_steps - record["step"]))

    def finish(self, result: TrainResult) -> None:
        """Show the result of the run and what to do next."""
        self._bar.stop()
        if not self._silent:
            show_result(result)
