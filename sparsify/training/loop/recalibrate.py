"""Recalibration of batch-norm statistics after weights changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...arguments import takes
from ...errors import SparsifyError
from ...preserve import keep_modes


@takes(model=nn.Module)
def recalibrate_batch_norm(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Recompute every batch norm's running mean and variance, in place, as the plain mean over `batches`.

    One-shot pruning changes the activations, so that the old statistics no longer describe them. `batches` yields
    (inputs, targets) on the model's device; only inputs are used, within `autocast()`. Everything but the batch norms
    runs in eval mode; all modes and momenta are restored. A model without batch norm is left alone. Raises
    SparsifyError if there is no batch; then, and if the model or the batches fail, the statistics stay as they were.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = {norm: norm.momentum for norm in norms}
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    seen = False
    try:
        with torch.no_grad(), keep_modes(model):
            model.eval()
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative mean
            for inputs, _ in batches:
                with autocast():
                    model(inputs)
                seen = True
        if not seen:
            raise SparsifyError("recalibrate_batch_norm: batches has no batch (a generator that is used up?)")
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
