"""Averages of a model's weights: torch's AveragedModel and timm's ModelEma carry the masks of the live model.

On their own they would average masks like numbers, into the union of all past masks, or raise an error. Each of them
copies the model first, so the first copy of a masked model wraps their update methods: an update runs with the masks
taken out of the buffers, then the masks are copied. Updates of models without masks are unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from ...errors import SparsifyError
from ..unwrap import unwrap
from .masks import all_masked_parameters, names_of_masked
from .sync import sync_masks

_UPDATES: dict[str, dict[str, tuple[str, ...]]] = {
    "torch.optim.swa_utils": {"AveragedModel": ("update_parameters",)},
    "timm.utils.model_ema": {"ModelEma": ("update",), "ModelEmaV2": ("update", "set"), "ModelEmaV3": ("update", "set")},
}
_WRAPPED = "sparsify_keeps_masks"


def keep_masks_in_averages() -> None:
    """Wrap the update methods of the averaging classes imported so far; wrapped ones stay as they are."""
    for module, classes in _UPDATES.items():
        loaded = sys.modules.get(module)
        for class_name, names in classes.items():
            cls = getattr(loaded, class_name, None)
            for name in names:
                update = vars(cls).get(name) if cls is not None else None
                if update is not None and not hasattr(update, _WRAPPED):
                    setattr(cls, name, _keeping_masks(update))


def _keeping_masks(update: Callable[..., Any]) -> Callable[..., Any]:
    """Return `update` wrapped so that the average takes over the model's masks instead of averaging them."""

    @wraps(update)
    def updated(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return what `update` returns. Raises SparsifyError if the model has masks and the average has none."""
        average, live = unwrap(self), unwrap(model)
        if next(all_masked_parameters(live), None) is None:
            return update(self, model, *args, **kwargs)
        if next(all_masked_parameters(average), None) is None:
            raise SparsifyError(
                f"{type(self).__name__} carries no masks, its model does: it was built before sparsify.convert; "
                "build it of the converted model, or call sparsify.convert on the average too"
            )
        with _out_of_sight(average, live):
            result = update(self, model, *args, **kwargs)
        sync_masks(average, live)
        return result

    setattr(updated, _WRAPPED, True)
    return updated


@contextmanager
def _out_of_sight(*models: nn.Module) -> Iterator[None]:
    """Remove the masks of `models` from their buffers inside the block."""
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
