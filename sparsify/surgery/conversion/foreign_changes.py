"""Parameters that cannot be masked because other code changed their module or its forward."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ..mask_state.masks import names_of_masked
from ..module_walk import owner_of
from ..tracing.bytecode_scan import read_by_functions

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def unreachable_weights(module: nn.Module) -> dict[str, str]:
    """Return {name: reason} of a module's own parameters that cannot be masked: scripted, quantized, lazy, ..."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [name for name, p in module.named_parameters(recurse=False) if p.dim() > 1]
        return dict.fromkeys(names, "scripted: convert the model before torch.jit.script")
    if type(module).__module__.startswith(_QUANTIZED):
        return {"weight": "quantized: convert the float model"} if hasattr(module, "weight") else {}
    found = {}
    for name, parameter in module._parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            found[name] = "lazy: run the model once before converting it"
        elif parameter is not None and parameter.dim() > 1 and not parameter.is_floating_point():
            found[name] = f"stored as {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter is not None and not _plain(parameter):
            found[name] = f"stored as {type(parameter.data).__name__}"
    taken = names_of_masked(module)
    for name in module._parameters:
        if name not in taken and _answers(module, f"{name}_mask"):
            found[name] = f"has an attribute {name}_mask of its own"
        if name.removesuffix("_mask") in module._parameters and name.endswith("_mask"):
            found[name] = f"is named as the mask of {name.removesuffix('_mask')} would be"
    return found


def _plain(parameter: Tensor) -> bool:
    data = type(parameter.data)
    return data is Tensor or data.__name__ in ("DTensor", "FakeTensor", "FunctionalTensor")


def _answers(module: nn.Module, name: str) -> bool:
    """Return whether a module has the attribute `name`, even if reading it fails."""
    if name in module.__dict__ or any(name in cls.__dict__ for cls in type(module).__mro__):
        return True
    try:
        return hasattr(module, name)
    except Exception:  # noqa: BLE001 - a module's own __getattr__ may raise anything
        return True


def replaced_forward(module: nn.Module) -> str:
    """Return why no mask can be applied in a forward that is not that of the module's class, or ""."""
    if isinstance(module, fx.GraphModule):
        return "read by an fx.GraphModule: convert the model before it is traced"
    if "forward" in module.__dict__:
        return "its module's forward was replaced on the object: convert the model before that"
    return ""


def read_by_replaced(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return (owner, name) of each parameter that a replaced forward may read."""
    paths = [name for name, _ in module.named_parameters(recurse=False)]
    if isinstance(module, fx.GraphModule):
        paths += [node.target for node in module.graph.nodes if node.op == "get_attr"]
    return [owner_of(module, path) for path in paths]


def read_by_held_functions(module: nn.Module, where: str) -> dict[int, str]:
    """Return {parameter id: reason} of children's weights that functions in the module's attributes read unmasked.

    `where` is the name of the module in the reasons.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {
        id(module.get_submodule(child)._parameters[name]): (
            f"the function {function}, which {where} holds, reads it: masks cannot be applied there"
        )
        for (child, name), function in read_by_functions(module).items()
    }
