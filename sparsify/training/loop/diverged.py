"""A training whose numbers are no longer numbers: found before it is recorded or kept, and told in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import Diverged

if TYPE_CHECKING:
    from .train_steps import Training


def check_numbers(training: Training) -> None:
    """Raise Diverged if a loss since the last record, or a weight that is trained, is no longer a number.

    Gradients are not looked at: the scaler of fp16 leaves out a step whose gradients overflow, and nothing is lost.
    """
    check_loss(training)
    if not are_finite(training.model.parameters()):
        where = f"after step {training.step} of {training.total_steps}"
        text = f"the weights are no longer numbers {where}; {_advice(training)}"
        raise training.ranks.one_of(Diverged(text))


def check_loss(training: Training) -> None:
    """Raise Diverged, with its first step, if a loss since the last record is no longer a number."""
    tally = training.tally.of_all(training.ranks)
    if tally.examples and not math.isfinite(loss := tally.means()[0]):
        where = f"at step {tally.first_wrong() or training.step} of {training.total_steps}"
        raise training.ranks.one_of(Diverged(f"the loss became {loss} {where}; {_advice(training)}"))


def are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether all parameters that are trained are finite; the device is waited for once.

    Frozen ones may hold minus infinity for a purpose.
    """
    found: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            found.setdefault(parameter.device, []).append(parameter.detach().isfinite().all())
    return all(bool(torch.stack(flags).all()) for flags in found.values())


def _advice(training: Training) -> str:
    lr = training.settings.optimizer.lr
    precision = training.settings.precision
    other = "" if precision == "no" else f", or train.precision=no (now {precision})"
    return f"a lower train.optimizer.lr (now {lr:g}) or train.clip_grad_norm may help{other}"
