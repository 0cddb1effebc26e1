"""Plan the masks on extra parameters (biases, norm parameters, position tables): which forwards read them, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import nn

from ..mask_state.masks import original_class
from ..mask_state.parametrized import source_parameters
from ..mask_state.torch_prune import pruned_parameters
from ..masking.masked_classes import is_direct
from ..masking.substituted_call import fused_parameters
from ..module_walk import full_name
from ..tracing.bytecode_scan import has_forward, is_torch, mentions, mentions_own
from ..tracing.trace_cache import graphs_like
from .decisions import ConversionPlan, Key
from .foreign_changes import read_by_replaced, replaced_forward, unreachable_weights


def plan_extra(module: nn.Module, plan: ConversionPlan) -> None:
    """Plan how one module's forward masks the extra parameters that it reads."""
    wanted = at_or_below(module, plan.extra)
    if not may_read(module, wanted):
        return
    own = [path for path in wanted if "." not in path]
    cls = original_class(module)
    replaced = replaced_forward(module)
    fused = [path for path in fused_parameters(module) if path in wanted]
    if replaced:
        plan.blocked |= {(id(owner), name): replaced for owner, name in read_by_replaced(module)}
    elif fused:
        _read_by(module, "substituted", [*fused, *own], wanted, plan)
    elif is_direct(cls) and module._parameters.get("weight") is not None:
        _read_by(module, "direct", [path for path in own if path in ("weight", "bias")], wanted, plan)
    elif is_torch(cls):
        _read_by(module, "substituted", own, wanted, plan)
    else:
        _plan_own_forward(module, wanted, plan)


def masked_extra(model: nn.Module) -> set[Key]:
    """Return the keys of the extra parameters that already carry masks."""
    return {(id(module), name) for module in model.modules() for name in module.__dict__.get("masked_also", ())}


def at_or_below(module: nn.Module, keys: Set[Key]) -> dict[str, Key]:
    """Return {path: key} of those of `keys` that a module or its submodules own."""
    found = {}
    for prefix, owner in module.named_modules(remove_duplicate=False) if keys else ():
        for name in () if isinstance(owner, torch.jit.ScriptModule) else owner._parameters:
            if (id(owner), name) in keys:
                found[full_name(prefix, name)] = (id(owner), name)
    return found


def may_read(module: nn.Module, wanted: Mapping[str, Key]) -> bool:
    """Return whether a module's forward may read one of the `wanted` parameters, which it or its submodules own."""
    if not wanted or replaced_forward(module):
        return bool(wanted)
    cls = original_class(module)
    if not has_forward(cls):
        return False
    if any("." not in path for path in wanted) or not wanted.keys().isdisjoint(fused_parameters(module)):
        return True
    return not is_torch(cls) and mentions(module, _last_parts(wanted))


def _last_parts(paths: Iterable[str]) -> frozenset[str]:
    return frozenset(path.rpartition(".")[2] for path in paths)


def _read_by(module: nn.Module, kind: str, paths: list[str], wanted: dict[str, Key], plan: ConversionPlan) -> None:
    plan.reached |= {wanted[path] for path in paths}
    if paths:
        plan.kinds.setdefault(id(module), kind)
        plan.reads[id(module)] = list(dict.fromkeys([*plan.reads.get(id(module), ()), *paths]))


def _plan_own_forward(module: nn.Module, wanted: dict[str, Key], plan: ConversionPlan) -> None:
    """Plan masks on the parameters that a module's own forward reads, by its trace or else by the names in its code."""
    own = [path for path in wanted if "." not in path]
    below = _last_parts(path for path in wanted if "." in path)
    if id(module) not in plan.traced and mentions_own(module, own) and not (below and mentions(module, below)):
        # Models have many norms, and tracing each is slow.
        _read_by(module, "substituted", own, wanted, plan)
        return
    traced = plan.traced.get(id(module)) or graphs_like(module, plan.trace_cache)
    if traced.all:
        read = {str(node.target) for graph in traced.all for node in graph.nodes if node.op == "get_attr"}
        paths = [path for path in wanted if path in read]
    else:
        paths = [path for path in wanted if path in own or mentions(module, _last_parts([path]))]
    plan.traced[id(module)] = traced
    _read_by(module, "substituted", paths, wanted, plan)


def unmaskable(module: nn.Module, name: str) -> str:
    """Return why no mask can be put on a module's parameter, or ""."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: call mask_also before torch.jit.script"
    reason = unreachable_weights(module).get(name, "")
    if name in source_parameters(module):
        reason = "a weight is computed from it: convert puts the mask on that weight"
    parameter = module._parameters[name]
    if not reason and parameter is not None and not parameter.is_floating_point():
        reason = f"stored as {str(parameter.dtype).removeprefix('torch.')}"
    if not reason and name.removesuffix("_orig") in pruned_parameters(module):
        reason = "pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove first"
    return reason
