"""Models sharded over several processes by torch's fully_shard: their masks, and their unsharded state for a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...errors import SparsifyError
from ...processes.shards import check_by_rows, group_of_mesh, is_sharded, like, part_of, whole
from ..module_walk import full_name
from .masks import all_masked_parameters, is_computed, layout


def sharded_name(model: nn.Module) -> str:
    """Return the name of the first sharded parameter, "" if there is none; reshards the model first."""
    reshard(model)
    for name, module in model.named_modules():
        found = next((own for own, parameter in module._parameters.items() if is_sharded(parameter)), None)
        if found is not None:
            return full_name(name, found)
    return ""


def refuse_sharded(model: nn.Module, what: str, advice: str) -> None:
    """Raise SparsifyError, which begins with `what` and ends with `advice`, if the model is sharded."""
    if name := sharded_name(model):
        raise SparsifyError(f"{what}: the model is sharded by fully_shard ({name} is a DTensor); {advice}")


def shard_masks(model: nn.Module) -> Any:
    """Shard the masks like their weights, in place; return the process group, None if the model is not sharded.

    Raises SparsifyError, which names the weight, if a weight is not sharded along its rows (output units), if it is
    computed in the forward, and if only some masked parameters are sharded.
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
    """Reshard every module of a sharded model: after a forward without a backward some stay unsharded."""
    package = sys.modules.get("torch.distributed.fsdp")  # without it no model is sharded
    for module in model.modules() if package is not None else ():
        if isinstance(module, package.FSDPModule):  # type: ignore[union-attr]
            module.reshard()


@contextmanager
def whole_state(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Put unsharded parameters and buffers, on the CPU, into a sharded model during the block, if `keep` is set.

    All processes must enter it together: each tensor is gathered in turn, also on processes without `keep`.
    """
    reshard(model)
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
    """Return (dict that holds it, its name there, tensor) for each sharded parameter and buffer."""
    held: list[Any] = [held for module in model.modules() for held in (module._parameters, module._buffers)]
    return [(owned, name, tensor) for owned in held for name, tensor in owned.items() if is_sharded(tensor)]


def _full(tensor: Tensor, *, keep: bool) -> Tensor | None:
    full = whole(tensor.detach())
    if not keep:
        return None
    return nn.Parameter(full.cpu(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else full.cpu()
