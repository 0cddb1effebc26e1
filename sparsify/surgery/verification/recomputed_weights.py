"""Effective weights that autograd computes again: to keep all of them takes as much memory as the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...ops import same_dense_layout
from ..copy_on_write import CopyOnWrite
from ..mask_state.masks import all_masked_parameters

_FIRST = 64  # entries that tell most weights apart
_CHUNK = 1 << 16  # entries that are compared at once


@contextmanager
def recomputed_weights(model: nn.Module, memory: CopyOnWrite) -> Iterator[None]:
    """Keep, for a backward pass, weight and mask in place of `where(mask, weight, 0)`, cast or not, known by its bits.

    A weight that is written to meanwhile is kept as it was. As without this, a backward pass that needs another tensor
    which was changed in place raises RuntimeError.
    """
    by_size: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for weight in all_masked_parameters(model):
        values, mask = weight.parameter.detach(), weight.mask
        plain = values.layout == torch.strided and values.is_floating_point() and values.numel() > 0
        if plain and same_dense_layout(values, mask):
            by_size.setdefault(values.numel(), []).append((values, mask))

    def pack(saved: Tensor) -> Any:
        """Return how `_unpacked` computes a tensor again, or the tensor and its version."""
        if type(saved) is Tensor and saved.layout == torch.strided and saved.is_floating_point():
            with torch.no_grad(), torch._C.DisableTorchFunction():
                for values, mask in by_size.get(saved.untyped_storage().nbytes() // saved.itemsize, ()):
                    if _is_masked(saved, values, mask):
                        placed = saved.size(), saved.stride(), saved.storage_offset()
                        return partial(_masked, memory.of(values), mask, saved.dtype, placed)
        return saved.detach(), saved._version  # detached: a result would keep the operation that keeps it

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpacked) if by_size else nullcontext():
        yield


def _unpacked(packed: Any) -> Tensor:
    if isinstance(packed, partial):
        return packed()  # type: ignore[no-any-return]
    saved, version = packed
    if saved._version != version:
        raise RuntimeError("a tensor that the gradient needs was changed in place")
    return saved  # type: ignore[no-any-return]


def _is_masked(saved: Tensor, values: Tensor, mask: Tensor) -> bool:
    """Return whether the memory of `saved` holds `where(mask, values, 0)` in its dtype."""
    whole = saved.as_strided((values.numel(),), (1,), 0)
    flat = [whole, *(tensor.as_strided(whole.shape, (1,)) for tensor in (values, mask))]
    starts = [0, *range(_FIRST, len(whole), _CHUNK)]
    ends = [*starts[1:], len(whole)]
    parts = ([tensor[start:end] for tensor in flat] for start, end in zip(starts, ends, strict=True))
    return all(_same_bytes(kept, torch.where(keep, full, 0).to(kept.dtype)) for kept, full, keep in parts)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _masked(values: Tensor, mask: Tensor, dtype: torch.dtype, placed: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.where(mask, values, 0).to(dtype).as_strided(*placed)
