"""Modules that something else has changed already: which can be taken over, and why others cannot be masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .masks import names_of_masked

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def unreachable_weights(module: nn.Module) -> dict[str, str]:
    """Return parameter name -> why a mask cannot be put on it, for what a module keeps in a form of its own."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [name for name, p in module.named_parameters(recurse=False) if p.dim() > 1]
        return dict.fromkeys(names, "scripted: convert the model before torch.jit.script")
    if type(module).__module__.startswith(_QUANTIZED):
        return {"weight": "quantized: convert the float model"} if hasattr(module, "weight") else {}
    if isinstance(module, parametrize.ParametrizationList):
        advice = "parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
        return dict.fromkeys(module._parameters, advice)
    found = {}
    for name, parameter in module._parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            found[name] = "lazy: run the model once before converting it"
        elif parameter is not None and parameter.dim() > 1 and not parameter.is_floating_point():
            found[name] = f"stored as {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter is not None and not _plain(parameter):
            found[name] = f"stored as {type(parameter.data).__name__}"
    taken = {*names_of_masked(module), *pruned_parameters(module)}
    for name in module._parameters:
        if hasattr(module, f"{name}_mask") and name not in taken:
            found[name] = f"has an attribute {name}_mask of its own"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            advice = "weight-normed: call torch.nn.utils.remove_weight_norm first"
            found |= {f"{hook.name}_g": advice, f"{hook.name}_v": advice}
        elif isinstance(hook, SpectralNorm):
            found[f"{hook.name}_orig"] = "spectral-normed: call torch.nn.utils.remove_spectral_norm first"
    return found


def _plain(parameter: Tensor) -> bool:
    data = type(parameter.data)
    return data is Tensor or data.__name__ in ("DTensor", "FakeTensor", "FunctionalTensor")


def pruned_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return parameter name -> mask for what torch.nn.utils.prune has pruned in this module."""
    names = [h._tensor_name for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
    return {name: module._buffers[f"{name}_mask"] for name in names}  # type: ignore[misc]


def take_over(module: nn.Module, name: str) -> Tensor:
    """Undo torch.nn.utils.prune on one parameter, keeping its values; return its mask as bool."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            del module._forward_pre_hooks[number]
    mask = module._buffers.pop(f"{name}_mask")
    parameter = module._parameters.pop(f"{name}_orig")
    delattr(module, name)
    order = [key for key in module._parameters if key != name]
    module.register_parameter(name, parameter)
    if name == "weight":  # where torch.nn's modules register it: before the bias
        for key in order:
            module._parameters[key] = module._parameters.pop(key)
    assert mask is not None
    return mask.bool()
