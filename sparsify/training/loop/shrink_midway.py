"""Shrinking a model in the middle of its training: the optimiser goes on with what is left of its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...surgery.conversion.fold import plain_copy
from ...surgery.shrink.cuts import Cuts, apply_cuts, beyond, cuts_of
from ...surgery.shrink.optimizer_state import cut_optimizer
from ...surgery.shrink.remask import mask_again
from ...surgery.shrink.shrink import shrink
from .forward import buffers_to_share, make_forward

if TYPE_CHECKING:
    from .train_steps import Training


def shrink_training(training: Training) -> None:
    """Take the dead channels out of the model that is trained; the optimiser keeps the state of what stays.

    `training.model` and `training.forward` are new then, `training.shrunk` tells what went.
    """
    example = torch.zeros(1, *training.data.input_shape, device=training.accelerator.device)
    example.normal_(generator=torch.Generator(example.device).manual_seed(0))
    training.ranks.take_buffers(buffers_to_share(training.model))  # what is constant may be told by them
    pruner = training.pruner
    heads = pruner.pruning.granularity.heads if pruner is not None else None
    report = shrink(training.model, example, heads=heads or "whole")
    _go_on_with(training, mask_again(report.model, training.model, report.cuts), report.cuts)
    training.shrunk = {
        "groups": report.groups,
        "removed": report.removed,
        "parameters": list(report.parameters),
        "multiply_adds": list(report.multiply_adds),
        "seconds": list(report.seconds or ()),
        "text": str(report),
    }


def cut_as_before(training: Training, cuts: Cuts, shrunk: dict[str, Any]) -> None:
    """Cut a training that was set up anew as it was cut when its checkpoint was written; its masks are set."""
    before = cuts_of(training.model)  # of a shrunk file that it started from
    cuts = cuts if before is None else beyond(before, cuts)
    small = apply_cuts(plain_copy(training.model), cuts)
    _go_on_with(training, mask_again(small, training.model, cuts), cuts)
    training.shrunk = shrunk


def _go_on_with(training: Training, small: nn.Module, cuts: Cuts) -> None:
    small.train()
    cut_optimizer(training.optimizer.optimizer, training.model, small, cuts)
    training.model = small
    training.forward = make_forward(small, training.settings, training.ranks)
