"""The weights a pruner works on, and what it does to their stored values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import SparsifyError
from ..surgery.masks import MaskedWeight, all_masked_weights, masked_weights
from ..surgery.names import ignored_names

_MASKABLE = (nn.Linear, nn.modules.conv._ConvNd)


def pruned_weights(model: nn.Module, ignore: Iterable[str]) -> list[str]:
    """Return the names of the masked weights that `ignore` leaves, in `state_dict` order.

    "first" and "last" count weights that got no mask as well, so that it makes no difference whether a weight was
    ignored when the model was converted. Raises SparsifyError if nothing is left.
    """
    masked = masked_weights(model)
    if not masked:
        raise SparsifyError(
            "Pruner: the model has no masked weight; call sparsify.convert(model) first, or ignore fewer weights"
        )
    maskable = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.__dict__.get("masked_names", ()) or (name == "weight" and isinstance(module, _MASKABLE))
    ]
    others = [name for name, _ in model.named_parameters() if name not in maskable]
    ignored = ignored_names(maskable, ignore, others=others)
    left = [name for name in masked if name not in ignored]
    if not left:
        raise SparsifyError(f"Pruner: 'ignore' leaves none of the {len(masked)} masked weights")
    return left


def copy_to_aliases(model: nn.Module) -> None:
    """Give every module that shares a masked parameter the mask that the first of them has, in place."""
    first: dict[int, Tensor] = {}
    for weight in all_masked_weights(model):
        mask = first.setdefault(id(weight.parameter), weight.mask)
        if mask is not weight.mask:
            weight.mask.copy_(mask)


def zero_masked(weights: Iterable[MaskedWeight]) -> None:
    """Set the stored values of removed entries to zero, in place."""
    with torch.no_grad():
        for weight in weights:
            weight.parameter.masked_fill_(~weight.mask, 0)


def restore_masked(weights: Iterable[MaskedWeight], values: Mapping[str, Tensor]) -> None:
    """Set the stored values of removed entries to those in `values`, by weight name, in place."""
    with torch.no_grad():
        for weight in weights:
            weight.parameter.copy_(torch.where(weight.mask, weight.parameter, values[weight.name]))
