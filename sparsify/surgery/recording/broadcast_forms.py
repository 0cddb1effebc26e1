"""Broadcast forms: data about the entries of a tensor, stored with size 1 along dimensions in which it is constant.

A *form* of a tensor is any tensor of the same rank that broadcasts to its shape: the channel numbers of an activation
[1, 64, 56, 56] are stored as [1, 64, 1, 1]. Movement operations (views, permutations, slices) apply to the form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]


def reshape(form: Tensor, old: Shape, new: Shape) -> Tensor:
    """Return the form after a tensor of shape `old` is viewed as `new`; expands only dimensions in which it varies."""
    if 0 in old:
        return _reshape_empty(form, old, new)
    sizes: list[int] = []
    expanded: list[int] = []
    for before, after in _blocks(tuple(old), tuple(new)):
        if all(form.shape[d] == 1 for d in before):
            expanded += [1] * len(before)
            sizes += [1] * len(after)
        else:
            expanded += [old[d] for d in before]
            sizes += [new[d] for d in after]
    return form.expand(expanded).reshape(sizes)


def _reshape_empty(form: Tensor, old: Shape, new: Shape) -> Tensor:
    """Return `reshape` for a tensor without entries, with sizes in place of the zeros that make both shapes fit."""
    if 0 in form.shape:
        return form.new_zeros(list(new))
    before, after = (math.prod(size for size in shape if size) for shape in (old, new))
    common = math.gcd(before, after)
    moved = reshape(form, _filled(old, after // common), _filled(new, before // common))
    for d, size in enumerate(new):
        moved = moved if size else moved.narrow(d, 0, 1)
    return moved


def _filled(shape: Shape, size: int) -> Shape:
    """Return the shape with `size` in place of its first zero and 1 in place of further zeros."""
    first = shape.index(0)
    return [(size if d == first else 1) if old == 0 else old for d, old in enumerate(shape)]


@lru_cache(maxsize=1 << 12)
def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Return the shortest pairs of runs of old and new dimensions with equal numbers of entries."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after, left, right = [], [], 1, 1
        if i < len(old):
            before, left, i = [i], old[i], i + 1
        if j < len(new):
            after, right, j = [j], new[j], j + 1
        while left != right:
            if left < right or j >= len(new):
                before.append(i)
                left *= old[i]
                i += 1
            else:
                after.append(j)
                right *= new[j]
                j += 1
        blocks.append((before, after))
    return blocks


def compress(form: Tensor) -> Tensor:
    """Return the same form with size 1 along every dimension in which it does not vary."""
    for d in range(form.dim()):
        if form.shape[d] > 1 and bool((form == form.narrow(d, 0, 1)).all()):
            form = form.narrow(d, 0, 1)
    return form


def nonzero(tensor: Tensor) -> Tensor:
    """Return where a tensor is nonzero, as a compressed bool form; True everywhere for a sparse one and one on meta."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return torch.ones([1] * tensor.dim(), dtype=torch.bool)
    if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel():
        # Often rows have no zeros, or only zeros: their extremes show that much faster. NaN fails both comparisons.
        pieces = [_extremes(piece) for piece in row_pieces(tensor.flatten(1))]
        least, most = (torch.cat(sides) for sides in zip(*pieces, strict=True))
        if bool(((most == 0) | (least > 0)).all()):
            return compress(along(most > 0, 0, tensor.dim()))
    return compress(tensor != 0)


def _extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    sizes = rows.abs()
    return sizes.amin(1), sizes.amax(1)


def row_pieces(matrix: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a matrix in pieces that fit into the cache together with their temporaries."""
    return torch.split(matrix, max(1, (1 << 18) // max(1, matrix.shape[1])))


def varying(form: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which a form varies: those of size above 1."""
    return tuple(d for d, size in enumerate(form.shape) if size > 1)


def expand_rank(form: Tensor, rank: int) -> Tensor:
    """Return a form with leading dimensions of size 1 added up to `rank`, as in broadcasting."""
    return form if form.dim() == rank else form.reshape([1] * (rank - form.dim()) + list(form.shape))


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """Return the form of a tensor of rank `rank` that holds the entries of a vector along dimension `dim`."""
    return vector.reshape([1] * dim + [-1] + [1] * (rank - 1 - dim))


def _plain(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    moved: Tensor = overload(form, *args)
    return moved


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def moved(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
        return function(form, *args)

    return moved


def _full(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Any:
    """Apply a rare operation to the form expanded to full size."""
    return overload(form.expand(tuple(old)).to(torch.float64), *args)


def _same(form: Tensor, *_: Any) -> Tensor:
    return form


def _reshape(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return reshape(form, old, new)


def _expand(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return expand_rank(form, len(new))


def _squeeze(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    given = args[0] if args else range(len(old))
    dims = {d % len(old) for d in ([given] if isinstance(given, int) else given)}
    return form.reshape([form.shape[d] for d in range(len(old)) if not (d in dims and old[d] == 1)])


def _slice(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return form if form.shape[args[0] if args else 0] == 1 else overload(form, *args)


def _select(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return form.select(args[0], 0 if form.shape[args[0]] == 1 else args[1])


def _along(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    """Flip or roll the form along the dimensions in which it varies."""
    *first, dims = args
    if overload.overloadpacket is torch.ops.aten.roll and (not first or not dims):  # of the flattened tensor
        rolled: Tensor = _full(form, old, new, args, overload)
        return rolled
    moved = form
    for i, d in enumerate(dims):
        if form.shape[d] > 1:
            moved = overload(moved, *[[a[i]] for a in first], [d])
    return moved


def _repeat(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    form = expand_rank(form, len(new))
    return form.repeat([1 if size == 1 else times for size, times in zip(form.shape, args[0], strict=True)])


def _unfold(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return form.unsqueeze(-1) if form.shape[args[0]] == 1 else overload(form, *args)


def _index_select(form: Tensor, old: Shape, new: Shape, args: Any, overload: Any) -> Tensor:
    return form if form.shape[args[0]] == 1 else form.index_select(args[0], args[1])


def is_movement(name: str, old: Shape, new: Shape, args: Sequence[Any] = ()) -> bool:
    """Return whether an operation is a movement from a tensor of shape `old` to results, the first of shape `new`."""
    if name == "as_strided_":  # pooling to one position calls it in channels-last memory
        return tuple(old) == tuple(new) and len(old) == 4 and old[2:] == (1, 1) and list(args[2][:2]) == [old[1], 1]
    if name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):  # not a view as a smaller dtype
        return math.prod(old) == math.prod(new)
    return name in SPLITS or name in MOVEMENTS


# Movements with one result -> function of the form, the shapes before and after, the other arguments, the overload.
MOVEMENTS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "unsqueeze", "movedim"), _plain),
    **{f"{function.__name__}_": _in_place(function) for function in (torch.transpose, torch.t, torch.unsqueeze)},
    **dict.fromkeys(("clone", "_to_copy", "alias", "as_strided_", "detach", "contiguous", "lift_fresh"), _same),
    "expand": _expand,
    **dict.fromkeys(("squeeze", "squeeze_"), _squeeze),
    **dict.fromkeys(("slice", "narrow"), _slice),
    "select": _select,
    **dict.fromkeys(("flip", "roll"), _along),
    "repeat": _repeat,
    "index_select": _index_select,
    "unfold": _unfold,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "diagonal", "index"), _full),
}


def split(name: str, form: Tensor, old: Shape, args: Any, overload: Any, count: int) -> list[Tensor]:
    """Return the forms of the `count` results of one of `SPLITS`."""
    dim = (args[0] if args else 0) if name == "unbind" else (args[1] if len(args) > 1 else 0)
    if form.shape[dim] == 1 and old[dim] != 1:
        return [form.select(dim, 0) if name == "unbind" else form] * count
    return list(overload(form, *args))


SPLITS = ("split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk", "tensor_split")


def concat(forms: Sequence[Tensor], shapes: Sequence[Shape], dim: int) -> Tensor:
    """Return the form of the concatenation along `dim` of tensors with these forms and shapes."""
    full = []
    for form, shape in zip(forms, shapes, strict=True):
        sizes = [max(f.shape[d] for f in forms) for d in range(form.dim())]
        sizes[dim] = shape[dim]
        full.append(form.expand(sizes))
    return torch.cat(full, dim)
