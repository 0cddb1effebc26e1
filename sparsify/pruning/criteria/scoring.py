"""The criterion of one pruning, and the data that were handed over for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SparsifyError
from ..settings.sections import CriterionSettings
from .gradients import LossFunction, on_model_and_batch, with_first_input
from .table import CRITERIA, Context


class Scoring:
    """A criterion by its settings; `function` is the criterion itself."""

    def __init__(self, settings: CriterionSettings, example_input: Any) -> None:
        self.settings = settings
        self.function = settings.function or CRITERIA[settings.name]
        self._example_input = example_input
        self._batches: Iterable[Any] | None = None
        self._loss_fn: LossFunction | None = None

    def hand_over(
        self, batches: Iterable[Any] | None, loss_fn: Callable[..., Tensor] | None, *, finished: bool
    ) -> None:
        """Take the batches and the loss of `Pruner.start`.

        Raises SparsifyError, unless all updates are done (`finished`), if the criterion needs data or an input's shape
        that are not there.
        """
        name, needs_data = self.settings.name, getattr(self.function, "needs_data", False)
        if needs_data and not finished and (batches is None or loss_fn is None):
            raise SparsifyError(f"criterion '{name}' needs data: call pruner.start(batches, loss_fn) before step()")
        if getattr(self.function, "needs_input", False) and self._example_input is None and not finished:
            if batches is None:
                raise SparsifyError(f"criterion '{name}' needs an input's shape: give Pruner an example_input")
            batches, self._example_input = with_first_input(batches)
        self._batches = list(batches) if needs_data and isinstance(batches, Iterator) else batches
        self._loss_fn = None if loss_fn is None else on_model_and_batch(loss_fn)

    def drop(self) -> None:
        """Release the data: no update is left."""
        self._batches = self._loss_fn = None

    def context(self, model: nn.Module, masks: Mapping[str, Tensor], step: int, generator: torch.Generator) -> Context:
        """Return what the criterion may use after `step` optimiser steps."""
        return Context(
            model, masks, step, generator, self._batches, self._loss_fn, self.settings.options, self._example_input
        )
