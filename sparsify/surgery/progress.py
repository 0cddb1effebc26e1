"""The progress of a model's pruning schedule, for the warning if the model is saved or reported on before its end."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from .unwrap import unwrap


class ScheduleWarning(UserWarning):
    """A model is saved or reported on before its pruning schedule has ended, or after more steps than were planned."""


@dataclass(frozen=True)
class Progress:
    """A pruner's progress: `position` of `total_steps` steps, `done` of `updates` updates, the last at step `last`."""

    position: int
    total_steps: int
    last: int
    done: int
    updates: int

    @property
    def warning(self) -> str:
        """The text of the warning, or "" if none is due; always "" before the first step."""
        if self.position > self.total_steps:
            return (
                f"pruner.step() was called {self.position:,} times, total_steps is {self.total_steps:,}: it counts "
                "optimiser steps, not micro-batches"
            )
        if self.position and self.done < self.updates:
            return (
                f"the pruning schedule was cut short at step {self.position:,}: {self.done:,} of {self.updates:,} "
                f"updates are done, the last is due at step {self.last:,}"
            )
        return ""


# Of each model by the weights that a pruner prunes: several may share a model.
_PROGRESS: WeakKeyDictionary[nn.Module, dict[frozenset[str], Progress]] = WeakKeyDictionary()


def note_progress(model: nn.Module, weights: Iterable[str], progress: Progress) -> None:
    """Store the progress of the current pruner of these weights of `model`."""
    own = frozenset(weights)
    others = _PROGRESS.get(unwrap(model), {})
    _PROGRESS[unwrap(model)] = {names: one for names, one in others.items() if not names & own} | {own: progress}


def warn_of_schedule(model: nn.Module, *, stacklevel: int, weights: Iterable[str] | None = None) -> None:
    """Emit a ScheduleWarning if a schedule of the model's last pruners (of `weights`) was cut short or overrun."""
    present = _PROGRESS.get(unwrap(model), {})
    for progress in present.values() if weights is None else [present.get(frozenset(weights))]:
        if progress is not None and progress.warning:
            warnings.warn(progress.warning, ScheduleWarning, stacklevel=stacklevel + 1)
