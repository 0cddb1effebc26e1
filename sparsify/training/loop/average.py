"""The moving average of the weights (`train.ema`), which is tested and saved instead of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ...surgery.mask_state.sharding import reshard

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

    from ..recipe.settings import EmaSettings


def make_average(model: nn.Module, settings: EmaSettings | None, *, sharded: bool = False) -> ModelEmaV3 | None:
    """Return timm's moving average of `model`, None without settings. The first update replaces its initial values.

    `sharded`: both models will be cut, so that sharded and whole tensors are updated one by one.
    """
    if settings is None:
        return None
    # Slow to import.
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=settings.decay, use_warmup=settings.warmup, foreach=not sharded)


def update_average(average: ModelEmaV3, model: nn.Module, step: int) -> None:
    """Update the average with the weights of `model` after `step` optimiser steps, at least 1.

    Parameters and buffers of the state dict are averaged, integers copied (timm). Masks
    (surgery.mask_state.averages) and non-persistent buffers are copied from the model.
    """
    for one in (average.module, model):
        reshard(one)  # an evaluation leaves whole parameters behind
    average.update(model, step=step)
    copy_unsaved(average.module, model)


def copy_unsaved(average: nn.Module, model: nn.Module) -> None:
    """Copy the non-persistent buffers, which timm skips and a forward may have changed."""
    for own, live in zip(average.modules(), model.modules(), strict=True):
        for name in live._non_persistent_buffers_set:
            value = live._buffers[name]
            own._buffers[name] = None if value is None else value.detach().clone()
