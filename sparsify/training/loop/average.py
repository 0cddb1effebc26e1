"""The moving average of the weights that a recipe asks for: what is tested and saved in place of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

    from ..recipe.settings import EmaSettings


def make_average(model: nn.Module, settings: EmaSettings | None) -> ModelEmaV3 | None:
    """Return timm's average of `model`, None if none is asked for. What is in its `module` now has no weight later."""
    if settings is None:
        return None
    # Slow to import.
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=settings.decay, use_warmup=settings.warmup)


def update_average(average: ModelEmaV3, model: nn.Module, step: int) -> None:
    """Take up the weights of `model` after `step` optimiser steps, at least 1.

    Parameters and buffers of its state are averaged, whole numbers copied (timm); masks are the model's
    (surgery.averages), and so are buffers that are in no state.
    """
    average.update(model, step=step)
    copy_unsaved(average.module, model)


def copy_unsaved(average: nn.Module, model: nn.Module) -> None:
    """Copy the buffers that no state dict holds: timm passes them over, and a forward may have changed them."""
    for own, live in zip(average.modules(), model.modules(), strict=True):
        for name in live._non_persistent_buffers_set:
            value = live._buffers[name]
            own._buffers[name] = None if value is None else value.detach().clone()
