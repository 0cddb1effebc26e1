"""Comparison of the masks of several processes, which must be equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from ..errors import SparsifyError, listed
from ..processes.ranks import Group, together
from ..processes.shards import group_of_copies, is_sharded, local
from ..surgery.mask_state.masks import MaskedWeight

_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)


def mask_hash(mask: Tensor) -> int:
    """Return 64 bits, as a signed number, of the BLAKE2b hash of a mask's entries in order, eight to a byte."""
    flat = mask.detach().reshape(-1)
    packed = np.packbits(flat.numpy(), bitorder="little") if flat.device.type == "cpu" else packed_on_device(flat)
    return int.from_bytes(blake2b(packed.tobytes(), digest_size=8).digest(), "little", signed=True)


def packed_on_device(flat: Tensor) -> np.ndarray[Any, Any]:
    """Return a flat mask packed eight entries to a byte, lowest bit first; packing happens on the mask's device."""
    whole = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    bits = whole * torch.tensor(_WEIGHTS, dtype=torch.uint8, device=flat.device)
    return bits.sum(1, dtype=torch.uint8).cpu().numpy()


def check_same(weights: Mapping[str, MaskedWeight], position: int, done: int, group: Group) -> None:
    """Raise SparsifyError on every process, naming the first weight whose mask differs between processes.

    `position` and `done` are the steps and updates done. The part of a sharded mask that a process holds is compared
    with the copies of that part, if there are any.
    """
    if group is None:
        return
    parts = {name: weight.mask for name, weight in weights.items() if is_sharded(weight.mask)}
    copies = next((group_of_copies(mask) for mask in parts.values()), None)
    if copies is not None:
        with together(group):
            _compare({name: local(mask) for name, mask in parts.items()}, position, done, copies)
    _compare({name: weight.mask for name, weight in weights.items() if name not in parts}, position, done, group)


def _compare(compared: Mapping[str, Tensor], position: int, done: int, group: Group) -> None:
    numbers = [position, done, len(compared), *map(mask_hash, compared.values())]
    places = _differing(numbers, _device(group), group)
    if not places:
        return
    if places[0] < 3:
        raise SparsifyError(
            f"Pruner: the processes differ in {('their steps', 'their updates', 'their weights')[places[0]]} (here "
            f"{position:,} steps, {done:,} updates, {len(compared)} masks); each calls start and step equally often"
        )
    names = [list(compared)[place - 3] for place in places]
    raise SparsifyError(
        f"Pruner: the mask of {listed(names, 1)} is not the same on all processes after update {done} "
        f"at step {position:,}: their weights or scores differ; begin with the same weights (DistributedDataParallel "
        "before pruner.start, or one seed), and give a criterion of your own the same numbers on each"
    )


def _differing(numbers: Sequence[int], device: torch.device, group: Group) -> list[int]:
    """Return the indices at which the numbers of the processes differ; [2] if their lengths differ."""
    own = torch.tensor(numbers, dtype=torch.int64)
    length = torch.tensor([len(numbers), ~len(numbers)], device=device)
    distributed.all_reduce(length, distributed.ReduceOp.MAX, group=group)
    if int(length[0]) != ~int(length[1]):
        return [2]
    extremes = torch.cat([own, ~own]).to(device)  # the largest of the complements is the complement of the least
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=group)
    most, least = extremes.cpu().chunk(2)
    return [int(place) for place in (most != ~least).nonzero().flatten()]


def _device(group: Group) -> torch.device:
    """Return the device of tensors that the processes of a group can exchange."""
    if distributed.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
