"""What is kept or removed together: single weights, units (the rows of a weight), blocks, or n of m neighbours.

A weight is a matrix here, [output units, inputs * kernel positions].
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .granularity_settings import GranularitySettings
from .selection import Part

_ENTRIES_AT_ONCE = 1 << 20

Size: TypeAlias = tuple[int, int]  # rows and columns of a block


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


def block_scores(part: Part, module: nn.Module, size: Size) -> Part:
    """Return the part of a weight's blocks, [rows of blocks, columns of blocks]: each scored by its entries' mean.

    Blocks are cut from the first row and column on; the last of each are smaller where sizes are no multiples. By the
    mean, so that they and layers of different widths can be compared. For `magnitude` and blocks that are units, that
    is the order of their L1 norms, as in Li et al. 2017 (Pruning Filters for Efficient ConvNets, section 3.1).
    """
    kept = part.scores if part.alive is None else torch.where(part.alive, part.scores, 0)  # what is gone counts nothing
    scores = rows(kept, module)
    height, width = scores.shape
    down, across = _extents(size, height, width)
    sums = []
    for band in torch.split(scores, down * max(1, _ENTRIES_AT_ONCE // (down * max(1, width)))):
        values = band.to(torch.float64)
        sums.append(_tiles(values.abs() if part.absolute else values, down, across).sum(3).sum(1))
    entries = _lengths(height, down)[:, None] * _lengths(width, across)
    means = torch.cat(sums) / entries.to(scores.device)
    alive = None if part.alive is None else block_mask(part.alive, module, size)
    return Part(part.name, means, torch.empty_like(means, dtype=torch.bool), alive=alive)


def block_mask(mask: Tensor, module: nn.Module, size: Size) -> Tensor:
    """Return one entry per block of a weight's mask, as a matrix: whether anything of it is kept."""
    matrix = rows(mask, module)
    return _tiles(matrix, *_extents(size, *matrix.shape)).any(3).any(1)


def keep_blocks(chosen: Part, part: Part, module: nn.Module, size: Size) -> None:
    """Write the mask of `chosen`, one entry per block, to that of `part`, the weight it was made from."""
    alive = rows(torch.ones_like(part.mask) if part.alive is None else part.alive, module)
    height, width = alive.shape
    down, across = _extents(size, height, width)
    kept = chosen.mask.repeat_interleave(down, 0).repeat_interleave(across, 1)[:height, :width]
    set_rows(part.mask, alive & kept, module)


def _extents(size: Size, height: int, width: int) -> Size:
    """Return the size of a block in a matrix, which may be smaller."""
    return min(size[0], max(1, height)), min(size[1], max(1, width))


def _lengths(length: int, step: int) -> Tensor:
    """Return how long each piece of a length is, cut every `step`."""
    return (length - torch.arange(0, length, step)).clamp(max=step)


def _tiles(matrix: Tensor, down: int, across: int) -> Tensor:
    """Return a matrix, filled up with zeros, as [rows of blocks, rows of one, columns of blocks, columns of one]."""
    height, width = matrix.shape
    missing = (0, -width % across, 0, -height % down)
    filled = F.pad(matrix, missing) if any(missing) else matrix
    return filled.reshape(-(-height // down), down, -(-width // across), across)


def along_inputs(tensor: Tensor, module: nn.Module) -> Tensor:
    """Return a weight's entries (or its mask's, or its scores') as [output units, kernel positions, inputs]."""
    kernel = max(1, tensor.shape[2:].numel())
    matrix = rows(tensor, module)
    return matrix.reshape(matrix.shape[0], matrix.shape[1] // kernel, kernel).transpose(1, 2)


def groups_of(tensor: Tensor, module: nn.Module, m: int) -> Tensor:
    """Return the groups of m neighbours along the inputs, [groups, m]; what is left at the inputs' end is in none."""
    entries = along_inputs(tensor, module)
    return entries[:, :, : entries.shape[2] // m * m].reshape(-1, m)


def group_part(part: Part, module: nn.Module, m: int) -> Part:
    """Return the part of a weight's groups, a row each."""
    scores = groups_of(part.scores, module, m)
    alive = None if part.alive is None else groups_of(part.alive, module, m)
    return Part(part.name, scores, torch.empty_like(scores, dtype=torch.bool), part.absolute, alive)


def keep_in_groups(chosen: Part, part: Part, module: nn.Module, m: int) -> None:
    """Write the mask of `chosen`, a row per group, to that of `part`; what is in no group stays as it may."""
    alive = torch.ones_like(part.mask) if part.alive is None else part.alive
    kept = along_inputs(alive, module).clone()
    units, kernel, inputs = kept.shape
    kept[:, :, : inputs // m * m] = chosen.mask.reshape(units, kernel, inputs // m * m)
    set_rows(part.mask, kept.transpose(1, 2).reshape(units, -1), module)


@dataclass(frozen=True)
class Granularity:
    """How a weight's entries are seen by a selection.

    `part` turns the weight's part into the one that is selected from, `mask` its mask likewise, and `apply` writes what
    was selected (first) to the weight's own mask (second). Unless it `keeps_shape`, what is selected from is a matrix,
    whose rows a scope takes for the output units.
    """

    part: Callable[[Part, nn.Module], Part]
    mask: Callable[[Tensor, nn.Module], Tensor]
    apply: Callable[[Part, Part, nn.Module], None]
    keeps_shape: bool = False


def _blocks(size: Size) -> Granularity:
    return Granularity(
        partial(block_scores, size=size), partial(block_mask, size=size), partial(keep_blocks, size=size)
    )


def _groups(m: int) -> Granularity:
    return Granularity(partial(group_part, m=m), partial(groups_of, m=m), partial(keep_in_groups, m=m))


# name -> function of the settings, which have checked that what it needs is there.
GRANULARITIES: dict[str, Callable[[GranularitySettings], Granularity]] = {
    "weight": lambda _: Granularity(lambda part, _: part, lambda mask, _: mask, lambda *_: None, keeps_shape=True),
    "unit": lambda _: _blocks((1, sys.maxsize)),
    "block": lambda settings: _blocks(settings.size or (1, 1)),
    "n:m": lambda settings: _groups(settings.m or 1),
}
