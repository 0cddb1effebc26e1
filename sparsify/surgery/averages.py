"""torch's AveragedModel on a masked model: the masks are out of sight while it averages, and the live ones copied.

With `use_buffers=True` and no function of the user's it takes differences of buffers, which torch refuses of bool ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

_WRAPPED = "sparsify_hides_masks"


def hide_masks_from_averages() -> None:
    """Wrap AveragedModel's update, once, if it is imported; of models without masks it stays what it was."""
    cls: Any = getattr(sys.modules.get("torch.optim.swa_utils"), "AveragedModel", None)
    if cls is not None and not hasattr(cls.update_parameters, _WRAPPED):
        cls.update_parameters = _hiding(cls.update_parameters)


def _hiding(update: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(update)
    def hiding(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from .mask_sources import sync_masks
        from .masks import get_masks

        average = self.module
        if not get_masks(model) or get_masks(model).keys() != get_masks(average).keys():
            return update(self, model, *args, **kwargs)
        with _out_of_sight(average, model):
            result = update(self, model, *args, **kwargs)
        sync_masks(average, model)
        return result

    setattr(hiding, _WRAPPED, True)
    return hiding


@contextmanager
def _out_of_sight(*models: nn.Module) -> Iterator[None]:
    """Take the masks of `models` out of their buffers for a while."""
    from .masks import names_of_masked

    seen = [module for model in models for module in model.modules() if names_of_masked(module)]
    buffers = [(module, module._buffers) for module in seen]
    try:
        for module, owned in buffers:
            masks = {f"{name}_mask" for name in names_of_masked(module)}
            module._buffers = {name: buffer for name, buffer in owned.items() if name not in masks}
        yield
    finally:
        for module, owned in buffers:
            owned.update(module._buffers)
            module._buffers = owned
