"""The live mask of one parameter, checked as a forward needs it: present, bool, and of the weight's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...errors import SparsifyError


def bool_mask(module: nn.Module, name: str) -> Tensor:
    """Return the live mask of the module's parameter `name`, as its forward uses it.

    A mask of numbers that are all 0 or 1 is converted back to bool in the module. Raises SparsifyError if the mask is
    missing or holds other numbers, which averaging or loading with `assign=True` can leave there.
    """
    mask: Tensor | None = getattr(module, f"{name}_mask", None)
    if mask is None:
        raise SparsifyError(f"{type(module).__name__}.{name}_mask is gone: something has deleted the mask of {name}")
    if mask.dtype is not torch.bool and not isinstance(mask, Proxy):
        mask = module._buffers[f"{name}_mask"] = _as_bool(mask, f"{type(module).__name__}.{name}_mask")
    return mask


def mask_in_forward(module: nn.Module, name: str) -> Tensor:
    """Return `bool_mask(module, name)`; raises SparsifyError also if the weight has another shape than its mask."""
    mask, weight = bool_mask(module, name), module._parameters.get(name)
    if weight is None or isinstance(mask, Proxy) or torch._C._get_tracing_state():  # torch.jit has no numbers for sizes
        return mask
    if weight.shape != mask.shape:
        raise SparsifyError(
            f"{type(module).__name__}.{name} has shape {tuple(weight.shape)}, its mask {tuple(mask.shape)}: the weight "
            "was replaced after the conversion; fold the model, change it, and convert it again"
        )
    return mask


def make_masks_bool(state_dict: dict[str, Any], keys: Iterable[str]) -> None:
    """Convert the masks at `keys` of a state dict to bool, in place. Raises SparsifyError for other values."""
    made = {key: _as_bool(state_dict[key], key) for key in keys if isinstance(state_dict.get(key), Tensor)}
    state_dict.update(made)


def _as_bool(mask: Tensor, name: str) -> Tensor:
    if mask.dtype is torch.bool:
        return _true_or_false(mask)
    wrong = mask[(mask != 0) & (mask != 1)]
    if wrong.numel():
        raise SparsifyError(
            f"{name}: a mask holds only 0 and 1, here {float(wrong[0]):.4g} of dtype "
            f"{str(mask.dtype).removeprefix('torch.')}: the masks were averaged; load the live model's, or call "
            "sparsify.sync_masks(average, live)"
        )
    return mask.bool()


def _true_or_false(mask: Tensor) -> Tensor:
    """Return the bool mask with every byte 0 or 1: a bool view of a uint8 tensor may hold other bytes for True."""
    if mask.is_meta or type(mask) not in (Tensor, nn.Parameter):
        return mask
    values = mask.view(torch.uint8)
    return values != 0 if bool((values > 1).any()) else mask
