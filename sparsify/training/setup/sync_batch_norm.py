"""Batch norm whose statistics are those of all processes."""

from __future__ import annotations

from torch import nn

from ...surgery.conversion.mask_extra import mask_also
from ...surgery.mask_state.masks import get_masks, set_masks


def with_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Return the model with torch's SyncBatchNorm instead of batch norm, in place below the model itself.

    torch makes new modules and drops the masks of their scales and shifts; here they are kept.
    """
    masks = get_masks(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    lost = [name for name in masks if name not in get_masks(model)]
    if lost:
        mask_also(model, lost)
        set_masks(model, {name: masks[name] for name in lost})
    return model
