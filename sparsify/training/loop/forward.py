"""The forward of a training step: the model, compiled, in channels-last or distributed as the settings say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import RunError, one_line
from ...processes.ranks import Ranks
from ...surgery.mask_state.masks import all_masked_parameters
from ..recipe.settings import TrainSettings


@dataclass(frozen=True)
class Forward:
    """A model as training steps call it."""

    run: Callable[[Tensor], Any]
    channels_last: bool
    together: bool = False  # whether other processes take part in it

    def __call__(self, images: Tensor) -> Any:
        """Return the model's output for a batch. Raises RunError, with the model's error, if it does not take it."""
        try:
            return self.run(images.contiguous(memory_format=torch.channels_last) if self.channels_last else images)
        except (TypeError, ValueError, RuntimeError) as error:
            if self.together:  # it may be that another process is lost
                raise
            given = f"{'x'.join(map(str, images.shape))} of {str(images.dtype).removeprefix('torch.')}"
            raise RunError(f"the model failed on a batch, {given}: {one_line(error, 200)}") from error

    def gradients_stay(self) -> AbstractContextManager[Any]:
        """Return a context in which gradients are not synchronised: more batches of the same step follow."""
        return self.run.no_sync() if isinstance(self.run, DistributedDataParallel) else nullcontext()


def make_forward(model: nn.Module, settings: TrainSettings, ranks: Ranks) -> Forward:
    """Return the forward of a training step. Several processes all get the first one's parameters.

    A model in parts (`settings.shard`) is its own forward: it gathers parameters and sums gradients by itself.
    """
    run: Callable[[Tensor], Any] = torch.compile(model) if settings.compile else model
    if ranks.size > 1 and not settings.shard:
        # Masks are equal already, and other buffers are exchanged where they matter.
        names = inspect.signature(DistributedDataParallel).parameters
        once = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        run = DistributedDataParallel(run, **{once: False})  # type: ignore[arg-type]
    return Forward(run, settings.channels_last, ranks.size > 1)


def buffers_to_share(model: nn.Module) -> list[Tensor]:
    """Return the buffers that differ between processes, such as batch-norm statistics: all but the masks."""
    masks = {id(weight.mask) for weight in all_masked_parameters(model)}
    return [buffer for buffer in model.buffers() if id(buffer) not in masks]
