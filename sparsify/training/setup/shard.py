"""Cutting the model of a recipe with torch's fully_shard (FSDP2): `train.shard`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...errors import SparsifyError, one_line
from ...processes.ranks import Ranks
from ...surgery.mask_state.masks import original_class
from ..loop.forward import buffers_to_share

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# They treat every entry by itself, so that they give each part what they give it in the whole.
_BY_ENTRY = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")


def shard(model: nn.Module, average: ModelEmaV3 | None, ranks: Ranks, device: torch.device) -> None:
    """Give all processes the first one's values, and cut the model and its average in place: blocks, then the rest.

    The masks of the model are cut by the pruner, if there is one. All processes call it at once. Raises SparsifyError
    if torch's fully_shard does not take the model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    ranks.take_buffers([*(parameter.detach() for parameter in model.parameters()), *buffers_to_share(model)])
    mesh = init_device_mesh(device.type, (ranks.size,))
    try:
        for one in (model, *([] if average is None else [average.module])):  # the average gets its values at step 1
            for block in (*blocks_of(one), one):
                fully_shard(block, mesh=mesh)
    except (ValueError, NotImplementedError) as error:  # a parameter without dimensions, or not contiguous
        raise SparsifyError(f"train.shard: fully_shard does not take this model: {one_line(error, 200)}") from None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the model's repeated blocks: outermost modules of a class that occurs twice or more.

    Modules whose submodules have no parameters are none, and torch's containers are looked into. Without a repeated
    block, or where modules share a parameter, the list is empty.
    """
    found = [module for module in model.modules() if _may_be_block(module) and module is not model]
    owned = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    if max(owned.values(), default=0) > 1:  # a shared parameter is gathered with one block only
        return []
    occurs = Counter(map(original_class, found))
    repeated = [module for module in found if occurs[original_class(module)] > 1]
    inside = {id(below) for module in repeated for below in module.modules() if below is not module}
    return [module for module in repeated if id(module) not in inside]


def _may_be_block(module: nn.Module) -> bool:
    inner = any(next(child.parameters(), None) is not None for child in module.children())
    return inner and original_class(module) not in _CONTAINERS


def check_optimizer(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise SparsifyError for an optimiser that looks at more of a weight than a single entry."""
    kind = type(optimizer)
    if not (kind.__module__.startswith("torch.optim.") and kind.__name__ in _BY_ENTRY):
        raise SparsifyError(
            f"train.optimizer: {name} does not go with train.shard: it may need whole weights, and a process has a "
            "part; sgd, momentum, adam, adamw, nadam, radam, adamax, adadelta, adagrad and rmsprop work"
        )
