"""Plan the masks on parametrized weights that conv and linear operations use."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList

from ..discovery.weight_uses import parameter_uses
from ..mask_state.masks import original_class, usual_layout
from ..mask_state.parametrized import Parametrized, parametrized_weights, without_parametrizations
from ..masking.masked_classes import is_direct
from ..masking.substituted_call import fused_weights
from ..tracing.bytecode_scan import CONV_AND_LINEAR, is_torch
from ..tracing.trace_cache import graphs_like
from .decisions import ConversionPlan
from .foreign_changes import replaced_forward
from .plan import own_weights


def plan_parametrized(module: nn.Module, plan: ConversionPlan) -> None:
    """Plan masks on one module's parametrized weights; note why the other parameters get none."""
    found = parametrized_weights(module)
    plain = without_parametrizations(module) if found else module
    for one in found:
        reason = one.reason or _no_weight(module, plain, one, plan)
        for name in one.others:
            plan.reasons[id(one.owner), name] = reason or f"only scales the weight computed from {one.source}"
        if one.source and reason:
            plan.reasons[id(one.owner), one.source] = reason
        elif one.source:
            plan.how[id(one.owner), one.source] = "computed"
            parameter = one.owner._parameters[one.source]
            if parameter is not None:
                plan.layouts[id(one.owner), one.source] = usual_layout(module, parameter.dim())
        if isinstance(one.owner, ParametrizationList):
            plan.kinds[id(one.owner)] = "parametrized"
            if isinstance(module, nn.RNNBase) and [*one.owner.buffers()]:
                _leave_others(module, one.name, plan)


def _leave_others(module: nn.Module, name: str, plan: ConversionPlan) -> None:
    """Leave a recurrent module's other weights dense: masking them would run this parametrization once more."""
    for path in plan.reads.pop(id(module), ()):
        plan.how.pop((id(module), path), None)
        plan.reasons[id(module), path] = f"the parametrization of {name} changes whenever the others are read"
    plan.kinds.pop(id(module), None)


def inside_parametrizations(model: nn.Module) -> set[int]:
    """Return the ids of all modules that compute parametrized weights."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    return {id(below) for one in lists for below in one.modules()}


def leave_inside(module: nn.Module, plan: ConversionPlan) -> None:
    """Note why the weights of a module that is part of a parametrization get no masks."""
    if not isinstance(module, ParametrizationList):
        for name in own_weights(module):
            plan.reasons[id(module), name] = "belongs to a parametrization: the mask is on the weight that it computes"


def _no_weight(module: nn.Module, plain: nn.Module, one: Parametrized, plan: ConversionPlan) -> str:
    """Return why a parametrized parameter is not the weight of a conv or linear operation, or ""."""
    cls = type(plain)
    weight = plain._parameters[one.name]
    if weight is None or weight.dim() < 2 or not weight.is_floating_point():
        return f"{cls.__name__}: not a conv or linear weight"
    if isinstance(module, NonDynamicallyQuantizableLinear) and one.owner is module:
        return "its norm is a hook that never runs: the layer is read, not called"
    if replaced_forward(module):
        return replaced_forward(module)
    if is_torch(cls):
        known = fused_weights(plain) or (["weight"] if is_direct(cls) else [])
        return "" if one.name in known else f"{cls.__name__}: not a conv or linear weight"
    traced = graphs_like(plain, {})
    if not traced.all:
        if isinstance(module, CONV_AND_LINEAR) and one.name == "weight":
            return ""
        return f"its module's forward cannot be traced: {traced.failure}"
    uses = [use for graph in traced.all if (use := parameter_uses(traced.module, graph).get(one.name)) is not None]
    if any(use.how == "computed" for use in uses):
        return f"{plan.names[id(module)] or original_class(module).__name__} computes another weight from it"
    if any(use.how != "unmasked" for use in uses):
        return ""
    return uses[0].reason if uses else "not read by the forward"
