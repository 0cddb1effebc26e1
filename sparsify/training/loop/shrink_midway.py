"""Shrinking a model during training: the optimiser keeps the state of the remaining channels."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import RunWarning
from ...surgery.analysis.coupling import Heads
from ...surgery.conversion.fold import plain_copy
from ...surgery.mask_state.sync import sync_masks
from ...surgery.shrink.cuts import Cuts, apply_cuts, beyond, cuts_of
from ...surgery.shrink.optimizer_state import cut_optimizer
from ...surgery.shrink.remask import mask_again
from ...surgery.shrink.report import ShrinkReport
from ...surgery.shrink.shrink import shrink
from .average import make_average
from .forward import buffers_to_share, make_forward

if TYPE_CHECKING:
    from .train_steps import Training


def shrink_training(training: Training) -> None:
    """Remove the dead channels of the model in training; the optimiser keeps the state of the remaining ones.

    Replaces `training.model` and `training.forward`, and sets `training.shrunk`.
    """
    example = torch.zeros(1, *training.data.input_shape, device=training.accelerator.device)
    example.normal_(generator=torch.Generator(example.device).manual_seed(0))
    pruner = training.pruner
    heads = pruner.pruning.granularity.heads if pruner is not None else None
    report, small = _shrunk(training, training.model, example, heads or "whole")
    average = training.result
    if training.average is not None:
        sync_masks(average, training.model)  # masks set before the first step have not reached it yet
        of_average, average = _shrunk(training, average, example, heads or "whole")
        if of_average.cuts != report.cuts:
            text = "the average has other channels without influence than the model; it begins anew after the shrink"
            warnings.warn(text, RunWarning, stacklevel=2)
            average = small
    _replace_model(training, small, report.cuts, average)
    training.shrunk = {
        "groups": report.groups,
        "removed": report.removed,
        "parameters": list(report.parameters),
        "multiply_adds": list(report.multiply_adds),
        "seconds": list(report.seconds or ()),
        "text": str(report),
    }


def _shrunk(training: Training, model: nn.Module, example: Tensor, heads: Heads) -> tuple[ShrinkReport, nn.Module]:
    """Return the report of shrinking `model`, and the small model with its remaining masks."""
    training.ranks.take_buffers(buffers_to_share(model))  # constant propagation may depend on them
    report = shrink(model, example, heads=heads)
    return report, mask_again(report.model, model, report.cuts)


def cut_as_before(training: Training, cuts: Cuts, shrunk: dict[str, Any]) -> None:
    """Apply the cuts of a checkpoint to a newly built training, whose masks are set."""
    before = cuts_of(training.model)  # of a shrunk file that the run started from
    cuts = cuts if before is None else beyond(before, cuts)
    small = apply_cuts(plain_copy(training.model), cuts)
    small = mask_again(small, training.model, cuts)
    _replace_model(training, small, cuts, small)
    training.shrunk = shrunk


def _replace_model(training: Training, small: nn.Module, cuts: Cuts, average: nn.Module) -> None:
    small.train()
    cut_optimizer(training.optimizer.optimizer, training.model, small, cuts)
    training.model = small
    training.average = make_average(average, training.settings.ema)
    training.forward = make_forward(small, training.settings, training.ranks)
