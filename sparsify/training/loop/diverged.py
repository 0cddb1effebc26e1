"""Divergence: a loss or weights that are no longer finite, detected before they are logged or saved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import Diverged
from ...processes.shards import local

if TYPE_CHECKING:
    from .train_steps import Training


def check_numbers(training: Training) -> None:
    """Raise Diverged if a loss since the last record, or a trained weight, is no longer finite.

    Gradients are not checked: the fp16 scaler skips a step whose gradients overflow, and nothing is lost.
    """
    check_loss(training)
    if any(training.ranks.any(not are_finite(training.model.parameters()))):  # a process may have a part of each
        where = f"after step {training.step} of {training.total_steps}"
        text = f"the weights are no longer numbers {where}; {_advice(training)}"
        raise training.ranks.one_of(Diverged(text))


def check_loss(training: Training) -> None:
    """Raise Diverged, with the first such step, if a loss since the last record is not finite."""
    tally = training.tally.of_all(training.ranks)
    if tally.examples and not math.isfinite(loss := tally.means()[0]):
        where = f"at step {tally.first_wrong() or training.step} of {training.total_steps}"
        raise training.ranks.one_of(Diverged(f"the loss became {loss} {where}; {_advice(training)}"))


def are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether all trained parameters, or their parts here, are finite, with one synchronisation for each device.

    Frozen parameters may hold minus infinity on purpose.
    """
    found: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            found.setdefault(parameter.device, []).append(local(parameter.detach()).isfinite().all())
    return all(bool(torch.stack(flags).all()) for flags in found.values())


def _advice(training: Training) -> str:
    lr = training.settings.optimizer.lr
    precision = training.settings.precision
    other = "" if precision == "no" else f", or train.precision=no (now {precision})"
    return f"a lower train.optimizer.lr (now {lr:g}) or train.clip_grad_norm may help{other}"
