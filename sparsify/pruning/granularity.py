"""What is kept or removed together: single weights, or units, the rows of a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .selection import Part

_ENTRIES_AT_ONCE = 1 << 20


def rows(tensor: Tensor, module: nn.Module) -> Tensor:
    """Return a weight's entries (or its mask's, or its scores') as one row per output unit, [units, entries].

    `module` owns the weight. A unit is an index of the first dimension: an output channel or feature, a row of an
    attention or recurrent matrix. In a transposed convolution, whose weight is [in, out/groups, ...], it is one of the
    second dimension in one group, in order of the output channels; a copy is made there.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and tensor.dim() > 2:
        groups = module.groups
        grouped = tensor.reshape(groups, tensor.shape[0] // groups, *tensor.shape[1:])
        return grouped.transpose(1, 2).reshape(groups * tensor.shape[1], -1)
    return tensor.reshape(tensor.shape[0], tensor.numel() // max(1, tensor.shape[0]))


def set_rows(target: Tensor, values: Tensor, module: nn.Module) -> None:
    """Write `values`, in the form that `rows` returns, to the mask `target`, in place."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and target.dim() > 2:
        groups, units, inputs = module.groups, target.shape[1], target.shape[0] // module.groups
        grouped = values.reshape(groups, units, inputs, *target.shape[2:]).transpose(1, 2)
        target.copy_(grouped.reshape(target.shape))
    else:
        target.copy_(values.reshape(target.shape))


def unit_scores(part: Part, module: nn.Module) -> Part:
    """Return the part of a weight's units: each is scored by the mean of its weights' scores.

    For `magnitude` that orders a layer's units by their L1 norm, as in Li et al. 2017 (Pruning Filters for Efficient
    ConvNets, section 3.1); by the mean, so that layers of different widths can be compared.
    """
    scores = rows(part.scores, module)
    count, width = scores.shape
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, width))
    means = torch.empty(count, dtype=torch.float64, device=scores.device)
    for start in range(0, count, at_once):
        chunk = scores[start : start + at_once].to(torch.float64)
        means[start : start + at_once] = (chunk.abs() if part.absolute else chunk).sum(1) / max(1, width)
    alive = None if part.alive is None else unit_mask(part.alive, module)
    return Part(part.name, means, torch.empty(count, dtype=torch.bool, device=means.device), alive=alive)


def unit_mask(mask: Tensor, module: nn.Module) -> Tensor:
    """Return one entry per unit of a weight's mask: whether anything of it is kept."""
    return rows(mask, module).any(1)


def keep_units(chosen: Part, part: Part, module: nn.Module) -> None:
    """Write the mask of `chosen`, one entry per unit, to that of `part`, the weight it was made from."""
    alive = torch.ones_like(part.mask) if part.alive is None else part.alive
    set_rows(part.mask, rows(alive, module) & chosen.mask[:, None], module)


@dataclass(frozen=True)
class Granularity:
    """How a weight's entries are seen by a selection.

    `part` turns the weight's part into the one that is selected from, `mask` its mask likewise, and `apply` writes what
    was selected (first) to the weight's own mask (second).
    """

    part: Callable[[Part, nn.Module], Part]
    mask: Callable[[Tensor, nn.Module], Tensor]
    apply: Callable[[Part, Part, nn.Module], None]


GRANULARITIES = {
    "weight": Granularity(lambda part, _: part, lambda mask, _: mask, lambda *_: None),
    "unit": Granularity(unit_scores, unit_mask, keep_units),
}
