"""Take over the masks of torch.nn.utils.prune: all of them, or none, with an error that says what to call first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from ...errors import SparsifyError
from ..module_walk import full_name

# The order in which torch.nn's constructors register parameters; recurrent layers list theirs.
_ORDER = (
    *("weight", "weight_ih", "weight_hh", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight"),
    *("bias", "bias_ih", "bias_hh", "in_proj_bias", "bias_k", "bias_v"),
)


class Pruned(NamedTuple):
    """A parameter pruned by torch.nn.utils.prune: its qualified name, its module, its name there, its mask."""

    path: str
    module: nn.Module
    name: str
    mask: Tensor

    @property
    def parameter(self) -> nn.Parameter:
        """The unmasked parameter, which torch.nn.utils.prune stores as `<name>_orig`."""
        return self.module._parameters[f"{self.name}_orig"]  # type: ignore[return-value]


def pruned_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return {parameter name: mask} of a module's own parameters pruned by torch.nn.utils.prune."""
    names = [h._tensor_name for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
    return {name: module._buffers[f"{name}_mask"] for name in names}  # type: ignore[misc]


def take_over(model: nn.Module) -> list[Pruned]:
    """Undo torch.nn.utils.prune in a whole model, in place, and return the pruned parameters with bool masks.

    The parameters stay the same objects, since an optimiser may hold them. Raises SparsifyError, before anything is
    changed, for a mask that cannot be taken over.
    """
    found = [
        Pruned(full_name(prefix, name), module, name, mask)
        for prefix, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, mask in pruned_parameters(module).items()
    ]
    refused = _refused(model, found) if found else None
    if refused is not None:
        raise cannot_take_over(*refused)
    for one in found:
        _restore(one)
    return [one._replace(mask=one.mask.bool()) for one in found]


def cannot_take_over(one: Pruned, reason: str) -> SparsifyError:
    """Return the error that says why a mask cannot be taken over, and what to call."""
    where = one.path.rpartition(".")[0]
    module = f"model.get_submodule('{where}')" if where else "model"
    return SparsifyError(
        f"convert: the mask of torch.nn.utils.prune on {one.path} cannot be taken over: {reason}; "
        f"call torch.nn.utils.prune.remove({module}, '{one.name}') first"
    )


def _refused(model: nn.Module, found: list[Pruned]) -> tuple[Pruned, str] | None:
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    pruned: dict[int, Pruned] = {}
    for one in found:
        if not bool(((one.mask == 0) | (one.mask == 1)).all()):
            return one, "it holds values other than 0 and 1"
        if isinstance(one.module, parametrize.ParametrizationList) or _forms_a_weight(one.module, one.name):
            return one, "another weight is computed from this parameter"
        first = pruned.setdefault(id(one.parameter), one)
        if not torch.equal(first.mask, one.mask):
            return one, f"{first.path} is the same parameter with another mask"
        others = {f"{other.path}_orig" for other in found if other.parameter is one.parameter}
        shared = [path for path in owners[id(one.parameter)] if path not in others and not _alias(path, others, model)]
        if shared:
            return one, f"{shared[0]} is the same parameter without this mask"
    return None


def _alias(path: str, others: set[str], model: nn.Module) -> bool:
    """Return whether `path` names one of the parameters `others` through another name of the module."""
    prefix, _, name = path.rpartition(".")
    modules = dict(model.named_modules(remove_duplicate=False))
    owner = modules[prefix]
    return any(modules[p] is owner and n == name for p, _, n in (other.rpartition(".") for other in others))


def _forms_a_weight(module: nn.Module, name: str) -> bool:
    """Return whether an older norm hook of torch.nn.utils (weight or spectral) computes a weight from `name`."""
    for hook in module._forward_pre_hooks.values():
        formed = getattr(hook, "name", None)
        if hasattr(hook, "compute_weight") and name in (f"{formed}_g", f"{formed}_v", f"{formed}_orig", formed):
            return True
    return False


def _restore(one: Pruned) -> None:
    module, name = one.module, one.name
    for number, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            del module._forward_pre_hooks[number]
    parameter = one.parameter
    del module._buffers[f"{name}_mask"], module._parameters[f"{name}_orig"]
    put_parameter(module, name, parameter)


def put_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` as the module's `name`, replacing a plain attribute, in the constructor's order."""
    module.__dict__.pop(name, None)
    module.register_parameter(name, parameter)
    order = getattr(module, "_flat_weights_names", _ORDER)
    if any(cls.__module__.startswith("torch.nn.modules.") and cls is not nn.Module for cls in type(module).__mro__):
        first = [key for key in order if key in module._parameters]
        for key in [*first, *(key for key in module._parameters if key not in first)]:
            module._parameters[key] = module._parameters.pop(key)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
