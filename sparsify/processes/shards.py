"""Sharded tensors: the DTensors of torch's fully_shard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from ..errors import SparsifyError
from .ranks import Group


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import; without it there are no DTensors
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """Return this process's shard of a tensor, without a copy; an unsharded tensor is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def whole(tensor: Any) -> Tensor:
    """Return the full tensor; for a sharded tensor all processes must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def whole_tree(tree: Any, *, keep: bool) -> Any:
    """Return a tree of dicts, lists and tuples with full tensors, on the CPU, in place of its sharded ones.

    All processes must call this together; without `keep` the full tensors are dropped, and None is in their places.
    """
    if isinstance(tree, Mapping):
        return {key: whole_tree(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole_tree(value, keep=keep) for value in tree)
    if not is_sharded(tree):
        return tree
    full = whole(tree.detach())
    return full.cpu() if keep else None


def sharded_like(tensor: Any, values: Tensor) -> Tensor:
    """Return the full tensor `values` sharded like `tensor`; `values` itself if that is not sharded."""
    return like(tensor, part_of(tensor, values), values.shape) if is_sharded(tensor) else values


def group_of_shards(tensor: Any) -> Group:
    """Return the process group over which a tensor is sharded, None if it is not."""
    return tensor.device_mesh.get_group(_cut(tensor)) if is_sharded(tensor) else None


def group_of_copies(tensor: Any) -> Group:
    """Return the process group that holds the same shard of a tensor, None if no other process does."""
    if not is_sharded(tensor) or tensor.device_mesh.ndim == 1:
        return None
    return tensor.device_mesh.get_group(1 - _cut(tensor))


def group_of_mesh(tensor: Any) -> Group:
    """Return the process group of all processes of a sharded tensor's mesh."""
    return group_of_shards(tensor) if tensor.device_mesh.ndim == 1 else distributed.group.WORLD


def _cut(tensor: Any) -> int:
    """Return the mesh dimension along which a tensor is sharded."""
    return next(number for number, placement in enumerate(tensor.placements) if not placement.is_replicate())


def count(mask: Tensor) -> int:
    """Return the number of True entries of a mask, over all shards."""
    own = int(local(mask).count_nonzero())
    group = group_of_shards(mask)
    if group is None:
        return own
    number = torch.tensor(own, dtype=torch.int64, device=local(mask).device)
    distributed.all_reduce(number, group=group)
    return int(number)


def check_by_rows(name: str, tensor: Any) -> None:
    """Raise SparsifyError, which names the weight, unless it is sharded once, along its first dimension.

    It may also be replicated, on a two-dimensional mesh over all processes.
    """
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    whole_world = mesh.size() == distributed.get_world_size()
    if placements != (Shard(0),) and not (placements == (Replicate(), Shard(0)) and whole_world):
        how = ", ".join(map(str, placements))
        raise SparsifyError(
            f"Pruner: {name} is sharded as {how} on a mesh of {mesh.size()} processes; shards are along the first "
            "dimension, on a mesh of one dimension, or of two (copies, shards) over all processes: fully_shard(model) "
            "as it is"
        )


def like(tensor: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Return a tensor of `shape`, sharded like `tensor`, whose local shard is `values`."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    made: Any = DTensor.from_local(
        values,
        tensor.device_mesh,  # type: ignore[attr-defined]
        tensor.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=shape,
        stride=stride,
    )
    return made  # type: ignore[no-any-return]


def copy_into(target: Tensor, values: Tensor) -> Tensor:
    """Copy `values` into `target`, in place, and return `target`; either may be sharded."""
    with torch.no_grad():
        if is_sharded(target):
            local(target).copy_(local(values) if is_sharded(values) else part_of(target, values))
        else:
            target.copy_(whole(values))
    return target


def part_of(tensor: Tensor, values: Tensor) -> Tensor:
    """Return a copy of the part of the full tensor `values` that corresponds to this process's shard of `tensor`."""
    mesh, cut = tensor.device_mesh, _cut(tensor)  # type: ignore[attr-defined]
    rank, size = mesh.get_local_rank(cut), mesh.size(cut)
    parts = torch.chunk(values, size, 0)
    return parts[rank].clone() if rank < len(parts) else values[:0].clone()
