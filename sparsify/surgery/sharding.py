"""Models that torch's fully_shard has cut over several processes: their masks, and their whole state for a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import SparsifyError
from ..processes.shards import check_by_rows, group_of_mesh, is_sharded, like, part_of, whole
from .masks import all_masked_parameters, is_computed, layout


def sharded_name(model: nn.Module) -> str:
    """Return the name of the first parameter of which each process holds a part, "" if there is none."""
    reshard(model)
    for name, module in model.named_modules():
        found = next((own for own, parameter in module._parameters.items() if is_sharded(parameter)), None)
        if found is not None:
            return f"{name}.{found}" if name else found
    return ""


def refuse_sharded(model: nn.Module, what: str, advice: str) -> None:
    """Raise SparsifyError, which begins with `what`, if the model is sharded."""
    if name := sharded_name(model):
        raise SparsifyError(f"{what}: the model is sharded by fully_shard ({name} is a DTensor); {advice}")


def shard_masks(model: nn.Module) -> Any:
    """Cut the masks of sharded weights as these are, in place; return the group of processes, None without any.

    Raises SparsifyError, naming the weight, for what is sharded in another way than along rows, and for a masked
    parameter that is whole beside others that are sharded.
    """
    if not sharded_name(model):
        return None
    group = None
    for weight in all_masked_parameters(model):
        parameter: Any = weight.parameter
        if not is_sharded(parameter):
            raise SparsifyError(f"Pruner: {weight.name} is whole on every process, others are sharded; shard all")
        check_by_rows(weight.name, parameter)
        roles = layout(weight)
        if (*roles.matrices, *roles.outputs)[0] != 0 or roles.groups > 1 or is_computed(weight):
            raise SparsifyError(
                f"Pruner: {weight.name} is sharded, and its output units do not lie along its rows, or it is computed "
                "in the forward; leave it dense with 'ignore' when the model is converted"
            )
        group = group_of_mesh(parameter)
        if not is_sharded(weight.mask):
            mask = like(parameter, part_of(parameter, weight.mask), weight.mask.shape)
            weight.module._buffers[f"{weight.parameter_name}_mask"] = mask
    return group


def reshard(model: nn.Module) -> None:
    """Let every module of a sharded model hold its part again: after a forward without a backward some hold all."""
    package = sys.modules.get("torch.distributed.fsdp")  # without it no model is sharded
    for module in model.modules() if package is not None else ():
        if isinstance(module, package.FSDPModule):  # type: ignore[union-attr]
            module.reshard()


@contextmanager
def whole_state(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Have the whole parameters and buffers, on the CPU, in a sharded model during the block, where `keep` is set.

    All processes call it at once; the others only take part, one tensor after the other.
    """
    changed: list[tuple[Any, str, Any]] = []
    seen: dict[int, Any] = {}
    try:
        for held, name, tensor in _sharded_tensors(model):
            if id(tensor) not in seen:
                seen[id(tensor)] = _full(tensor, keep=keep)
            if keep:
                changed.append((held, name, tensor))
                held[name] = seen[id(tensor)]
        yield
    finally:
        for held, name, tensor in changed:
            held[name] = tensor


def _sharded_tensors(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """Return the parameters and buffers that are sharded: the dict that holds each, its name there and itself."""
    held: list[Any] = [held for module in model.modules() for held in (module._parameters, module._buffers)]
    return [(owned, name, tensor) for owned in held for name, tensor in owned.items() if is_sharded(tensor)]


def _full(tensor: Tensor, *, keep: bool) -> Tensor | None:
    full = whole(tensor.detach())
    if not keep:
        return None
    return nn.Parameter(full.cpu(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else full.cpu()
