"""Exclusions from a plan: parameters also used dense, weights that cannot carry a mask, classes without subclasses."""

from __future__ import annotations

import torch
from torch import nn

from ..mask_state.masks import original_class
from ..masking.masked_classes import ATTRIBUTES, Masked, masked_class
from .decisions import ConversionPlan, Key, key_at


def leave_out_shared(plan: ConversionPlan) -> None:
    """Remove a parameter from the plan if a module that shares it uses it dense, or another module reads it."""
    sharing: dict[int, dict[Key, str]] = {}
    for name, (module, key) in plan.owners.items():
        held = module._parameters.get(key) if not isinstance(module, torch.jit.ScriptModule) else None
        if held is not None:
            sharing.setdefault(id(held), {}).setdefault((id(module), key), name)
    for parameter, places in sharing.items():
        dense = [name for where, name in places.items() if where not in plan.how]
        shared = bool(dense) and len(places) > 1
        for where, name in places.items() if shared or parameter in plan.outside else ():
            plan.how.pop(where, None)
            plan.reasons[where] = plan.outside.get(parameter) or _why_shared(name, dense, list(places.values()))


def _why_shared(name: str, dense: list[str], names: list[str]) -> str:
    """Return why a parameter is left dense at `name`, one of its `names`, given the names of its dense uses."""
    other = next((one for one in dense if one != name), None)
    if other is not None:
        return f"shared with {other}, which is used dense"
    return f"used dense, and shared with {next(one for one in names if one != name)}"


def leave_out_unmaskable(model: nn.Module, plan: ConversionPlan) -> None:
    """Remove from `plan` weights that cannot carry a mask or whose reader's class cannot be subclassed; note why."""
    for module in model.modules():
        for name, reason in plan.unreachable(module).items():
            plan.how.pop((id(module), name), None)
            plan.reasons[id(module), name] = reason
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        paths = [name for name in module._parameters if (id(module), name) in plan.how]
        keys = {key_at(module, path) for path in [*paths, *plan.reads.get(id(module), ())]} & plan.how.keys()
        problem = _class_problem(module, plan.kinds.get(id(module), "owner")) if keys else ""
        for key in keys if problem else ():
            plan.how.pop(key)
            plan.reasons[key] = problem
            plan.dense.add(key)
        if problem:
            plan.kinds.pop(id(module), None)
            plan.reads.pop(id(module), None)


def _class_problem(module: nn.Module, kind: str) -> str:
    """Return why a module cannot take on the masked class of `kind`, or ""."""
    cls = original_class(module)
    taken = [] if isinstance(module, Masked) else [name for name in ATTRIBUTES if _has(module, name)]
    if taken:
        return f"has an attribute {taken[0]} of its own, as masked modules have"
    try:
        made = masked_class(cls, kind)  # type: ignore[arg-type]
        object.__setattr__(object.__new__(cls), "__class__", made)
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything when it is subclassed
        return f"no class can be derived from {cls.__name__}: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _has(module: nn.Module, name: str) -> bool:
    held = (module.__dict__, module._parameters, module._buffers, module._modules)
    return any(name in names for names in held) or any(name in vars(cls) for cls in type(module).__mro__)
