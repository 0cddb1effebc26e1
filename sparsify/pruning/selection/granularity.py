"""What is kept or removed together: single weights, units (the rows of a weight), blocks, or n of m neighbours.

A weight is treated as a matrix, [output units, inputs * kernel positions], whatever the order of its dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ...surgery.mask_state.masks import Layout
from ..settings.granularity_settings import GranularitySettings
from .k_lowest import ScoredTensor

_ENTRIES_AT_ONCE = 1 << 20

Size: TypeAlias = tuple[int, int]  # rows and columns of a block


def rows(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a weight's entries (or its mask's, or its scores') as one row per output unit, [units, entries].

    A unit is an output channel or feature, or a row of an attention or recurrent matrix; a weight may hold several
    matrices (experts, the groups of a transposed convolution). A view where strides allow it, else a copy.
    """
    entries, (units, width) = _in_order(tensor, layout)
    return entries.reshape(units, width)


def set_rows(target: Tensor, values: Tensor, layout: Layout) -> None:
    """Write `values`, shaped as by `rows`, to the mask `target`, in place."""
    entries, _ = _in_order(target, layout)
    entries.copy_(values.reshape(entries.shape))


def _matrices(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the rows of a weight by matrix, [matrices, units, entries]; groups of a convolution make one together."""
    matrix = rows(tensor, layout)
    count = prod(tensor.shape[d] for d in layout.matrices)
    return matrix.reshape(count, len(matrix) // max(1, count), matrix.shape[1])


def _in_order(tensor: Tensor, layout: Layout) -> tuple[Tensor, Size]:
    """Return a view with the dimensions in the order matrices, outputs, inputs, kernel, and the shape of its rows."""
    if layout.groups > 1:
        first = layout.inputs[0]
        cut = (layout.groups, tensor.shape[first] // layout.groups)
        tensor = torch.unflatten(tensor, first, cut)
        matrices, *others = (tuple(d + (d >= first) for d in dimensions) for dimensions in layout[:4])
        layout = Layout((*matrices, first), others[0], others[1], others[2])
    units = (*layout.matrices, *layout.outputs)
    entries = (*layout.inputs, *layout.kernel)
    shape = tuple(prod(tensor.shape[d] for d in dimensions) for dimensions in (units, entries))
    return tensor.permute(*units, *entries), (shape[0], shape[1])


def block_scores(scored: ScoredTensor, layout: Layout, size: Size) -> ScoredTensor:
    """Return the scores of a weight's blocks, [rows of blocks, columns of blocks]: the mean of their entries' scores.

    Blocks start at the first row and column of each matrix; the last ones are smaller where sizes are not multiples.
    The mean makes these, and layers of different widths, comparable. For `magnitude` and blocks that are units the
    order is that of their L1 norms, as in Li et al. 2017 (Pruning Filters for Efficient ConvNets, section 3.1).
    """
    # Entries that may not be kept count as zero.
    kept = scored.scores if scored.allowed is None else torch.where(scored.allowed, scored.scores, 0)
    scores = _matrices(kept, layout)
    count, height, width = scores.shape
    down, across = _extents(size, height, width)
    sums = [scores.new_empty(0, -(-width // across), dtype=torch.float64)]
    for matrix in scores:
        for band in torch.split(matrix, down * max(1, _ENTRIES_AT_ONCE // (down * max(1, width)))):
            values = band.to(torch.float64)
            sums.append(_tiles(values.abs() if scored.absolute else values, down, across).sum(3).sum(1))
    entries = _lengths(height, down)[:, None] * _lengths(width, across)
    means = torch.cat(sums) / entries.repeat(count, 1).to(scores.device)
    allowed = None if scored.allowed is None else block_mask(scored.allowed, layout, size)
    mask = torch.empty_like(means, dtype=torch.bool)
    return ScoredTensor(scored.name, means, mask, allowed=allowed, group=scored.group)


def block_mask(mask: Tensor, layout: Layout, size: Size) -> Tensor:
    """Return one entry per block of a weight's mask, as a matrix: whether any entry of it is kept."""
    matrices = _matrices(mask, layout)
    tiles = _tiles(matrices, *_extents(size, *matrices.shape[1:]))
    return tiles.any(4).any(2).flatten(0, 1)


def keep_blocks(chosen: ScoredTensor, scored: ScoredTensor, layout: Layout, size: Size) -> None:
    """Write the mask of `chosen`, one entry per block, to the mask of `scored`, its weight, in place."""
    allowed = _matrices(torch.ones_like(scored.mask) if scored.allowed is None else scored.allowed, layout)
    count, height, width = allowed.shape
    down, across = _extents(size, height, width)
    blocks = chosen.mask.reshape(count, -(-height // down), -(-width // across))
    kept = blocks.repeat_interleave(down, 1).repeat_interleave(across, 2)[:, :height, :width]
    set_rows(scored.mask, allowed & kept, layout)


def _extents(size: Size, height: int, width: int) -> Size:
    """Return the size of a block in a matrix, which may be smaller."""
    return min(size[0], max(1, height)), min(size[1], max(1, width))


def _lengths(length: int, step: int) -> Tensor:
    """Return the lengths of the pieces of `length`, cut every `step`."""
    return (length - torch.arange(0, length, step)).clamp(max=step)


def _tiles(matrix: Tensor, down: int, across: int) -> Tensor:
    """Return a matrix, zero-padded, as [..., block rows, rows of a block, block columns, columns of a block]."""
    *before, height, width = matrix.shape
    missing = (0, -width % across, 0, -height % down)
    filled = F.pad(matrix, missing) if any(missing) else matrix
    return filled.reshape(*before, -(-height // down), down, -(-width // across), across)


def along_inputs(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a weight's entries (or its mask's, or its scores') as [output units, kernel positions, inputs]."""
    kernel = prod(tensor.shape[d] for d in layout.kernel)
    matrix = rows(tensor, layout)
    return matrix.reshape(matrix.shape[0], matrix.shape[1] // max(1, kernel), kernel).transpose(1, 2)


def groups_of(tensor: Tensor, layout: Layout, m: int) -> Tensor:
    """Return the groups of m neighbours along the inputs, [groups, m]; a remainder at the end is in no group."""
    entries = along_inputs(tensor, layout)
    return entries[:, :, : entries.shape[2] // m * m].reshape(-1, m)


def group_view(scored: ScoredTensor, layout: Layout, m: int) -> ScoredTensor:
    """Return the scores of a weight's groups of m neighbours, a row for each group."""
    scores = groups_of(scored.scores, layout, m)
    allowed = None if scored.allowed is None else groups_of(scored.allowed, layout, m)
    return ScoredTensor(scored.name, scores, torch.empty_like(scores, dtype=torch.bool), scored.absolute, allowed)


def keep_in_groups(chosen: ScoredTensor, scored: ScoredTensor, layout: Layout, m: int) -> None:
    """Write the mask of `chosen`, a row per group, to that of `scored`; entries in no group are kept if allowed."""
    allowed = torch.ones_like(scored.mask) if scored.allowed is None else scored.allowed
    kept = along_inputs(allowed, layout).clone()
    units, kernel, inputs = kept.shape
    kept[:, :, : inputs // m * m] = chosen.mask.reshape(units, kernel, inputs // m * m)
    set_rows(scored.mask, kept.transpose(1, 2).reshape(units, kernel * inputs), layout)


@dataclass(frozen=True)
class Granularity:
    """The candidates of a weight, between which a selection chooses.

    `view` returns their scores, `mask` a weight's mask in the same form, and `apply` writes the selected mask (of its
    first argument) to the weight's own (of its second). Unless it `keeps_shape`, the view is a matrix, whose rows are
    the output units of a scope.
    """

    view: Callable[[ScoredTensor, Layout], ScoredTensor]
    mask: Callable[[Tensor, Layout], Tensor]
    apply: Callable[[ScoredTensor, ScoredTensor, Layout], None]
    keeps_shape: bool = False


def _blocks(size: Size) -> Granularity:
    return Granularity(
        partial(block_scores, size=size), partial(block_mask, size=size), partial(keep_blocks, size=size)
    )


def _groups(m: int) -> Granularity:
    return Granularity(partial(group_view, m=m), partial(groups_of, m=m), partial(keep_in_groups, m=m))


# name -> function of the validated settings.
GRANULARITIES: dict[str, Callable[[GranularitySettings], Granularity]] = {
    "weight": lambda _: Granularity(lambda scored, _: scored, lambda mask, _: mask, lambda *_: None, keeps_shape=True),
    "unit": lambda _: _blocks((1, sys.maxsize)),
    "block": lambda settings: _blocks(settings.size or (1, 1)),
    "n:m": lambda settings: _groups(settings.m or 1),
}
