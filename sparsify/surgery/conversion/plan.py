"""Plan the masks on weights: which weights each module's forward reads, and how their masks are applied there."""

from __future__ import annotations

import torch
from torch import fx, nn

from ..discovery.chosen_weights import add_chosen
from ..discovery.weight_uses import PART, SHAPE_ONLY, STORED, Use, parameter_uses
from ..mask_state.masks import original_class
from ..mask_state.parametrized import source_parameters
from ..masking.given_weights import Given
from ..masking.masked_classes import Masked, is_direct
from ..masking.substituted_call import fused_weights
from ..module_walk import full_name
from ..tracing.bytecode_scan import (
    CONV_AND_LINEAR,
    chained_reads,
    has_forward,
    is_torch,
    mentions_function,
    mentions_own,
    reads_weights,
    reads_weights_of_children,
    recomputes,
)
from ..tracing.own_graphs import as_original
from ..tracing.partial_graphs import partial_graphs
from ..tracing.trace_cache import graphs_like
from .decisions import ConversionPlan, key_at
from .foreign_changes import read_by_held_functions, read_by_replaced, replaced_forward

_RECOMPUTED = Use(
    "unmasked", "computed in a forward that uses activation checkpointing, which computes it again unmasked"
)

_WITH_OTHER_WEIGHTS, _GRADIENTS = frozenset({"functional_call"}), frozenset({"grad", "backward"})


def weight_owners(model: nn.Module, plan: ConversionPlan) -> dict[str, tuple[nn.Module, str]]:
    """Return {qualified name: (module, parameter name)} of all weight-like parameters, in `state_dict` order."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in dict.fromkeys([*own_weights(module), *plan.unreachable(module)]):
            found[full_name(prefix, name)] = (module, name)
    return found


def own_weights(module: nn.Module) -> list[str]:
    """Return the names of a module's own float parameters of two or more dimensions."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    lazy = nn.UninitializedParameter
    parameters = [(n, p) for n, p in module._parameters.items() if p is not None and not isinstance(p, lazy)]
    return [name for name, parameter in parameters if parameter.is_floating_point() and parameter.dim() > 1]


def plan_module(module: nn.Module, plan: ConversionPlan) -> None:
    """Plan how to mask the weights that one module's forward reads."""
    unreachable = plan.unreachable(module)
    for name, reason in unreachable.items():
        plan.reasons[id(module), name] = reason
    plan.outside |= read_by_held_functions(module, plan.names[id(module)] or type(module).__name__)
    formed = source_parameters(module)
    own = [name for name in own_weights(module) if name not in unreachable and name not in formed]
    if isinstance(module, torch.jit.ScriptModule) or (unreachable and not own):
        return
    cls = original_class(module)
    fused = fused_weights(module)
    replaced = "" if isinstance(module, Masked) else replaced_forward(module)  # a wrapper of a masked forward masks too
    if replaced:
        read = [(id(owner), name) for owner, name in read_by_replaced(module)]
        plan.dense |= {*read}
        plan.reasons |= dict.fromkeys(read, replaced)
    elif issubclass(cls, Given):
        _mask_by(module, "substituted", "substituted", [*module.__dict__["given_weights"]], plan)
    elif fused:
        _mask_by(module, "substituted", "substituted", fused, plan)
    elif is_direct(cls) and "weight" in (*own, *unreachable):
        _mask_by(module, "direct", "direct", [name for name in own if name == "weight"], plan)
    elif is_direct(cls) and is_torch(cls):
        unread = f"the forward of {cls.__name__} does not read it: something else may compute the weight from it"
        plan.reasons |= {(id(module), name): unread for name in own}
    elif not is_torch(cls) and (own or isinstance(module, CONV_AND_LINEAR) or reads_weights(module)):
        _plan_own_forward(module, own if has_forward(cls) else [], plan)
    elif has_forward(cls):
        plan.dense |= {(id(module), name) for name in own}


def _mask_by(module: nn.Module, kind: str, how: str, paths: list[str], plan: ConversionPlan) -> None:
    """Plan a class of `kind` that masks the weights at `paths` for the module."""
    for path in paths:
        plan.how.setdefault(key_at(module, path), how)
    if paths:
        plan.kinds[id(module)] = kind
        plan.reads[id(module)] = paths


def _plan_own_forward(module: nn.Module, own: list[str], plan: ConversionPlan) -> None:
    """Trace a module's own forward and plan masks on the weights of its linear operations."""
    traced = plan.traced[id(module)] = graphs_like(module, plan.trace_cache)
    if not traced.all:
        _plan_untraceable(module, own, traced.failure, plan)
        return
    uses: dict[str, Use] = {}
    for graph in traced.all:
        _add_uses(uses, traced.module, graph)
        _leave_outside(module, traced.module, graph, plan)
    add_chosen(module, uses)
    if recomputes(original_class(module)):
        uses |= {path: _RECOMPUTED for path, use in uses.items() if use.how == "computed"}
    _leave_computed_below(module, uses, plan)
    _note_uses(module, uses, plan)
    for name in own:
        use = uses.get(name)
        plan.reasons[id(module), name] = use.reason if use else _unread(module, name, traced.failure)
        if use and use.how == "unmasked":
            plan.dense.add((id(module), name))
    for how in ("computed", "substituted"):
        paths = [p for p, u in uses.items() if u.how != "unmasked" and (u.how == "computed") == (how == "computed")]
        _mask_by(module, "substituted", how, paths, plan)
    if id(module) in plan.kinds:
        read = [path for path, use in uses.items() if use.how != "unmasked"]
        plan.reads[id(module)] = list(dict.fromkeys([*read, *chained_reads(module)]))


def _leave_computed_below(module: nn.Module, uses: dict[str, Use], plan: ConversionPlan) -> list[str]:
    """Remove from `uses`, and return, submodules' weights from which the forward computes a weight; they stay dense."""
    paths = [path for path, use in uses.items() if use.how == "computed" and "." in path]
    for path in paths:
        uses.pop(path)
        where = key_at(module, path)
        plan.dense.add(where)
        plan.reasons[where] = f"{plan.names[id(module)] or type(module).__name__} computes another weight from it"
    return paths


def _leave_outside(module: nn.Module, original: nn.Module, graph: fx.Graph, plan: ConversionPlan) -> None:
    """Leave dense the parameters that a forward reads from outside its module, or not as attributes of modules."""
    for node in graph.nodes:
        value = original.__dict__.get(node.target) if node.op == "get_attr" else None
        if isinstance(value, nn.Parameter):
            where = plan.names[id(module)] or type(module).__name__
            own = any(value is parameter for parameter in module._parameters.values())
            how = "from a closure, a list or another object" if own else "although it belongs to another module"
            plan.outside[id(value)] = f"{where} reads it {how}: masks cannot be applied there"


def read_where_called_functionally(module: nn.Module, plan: ConversionPlan) -> None:
    """Plan a class that reads all masked weights below a module whose forward calls submodules with other weights.

    The other weights are then used as they are, as in a folded model, which has no masks to put on them. A forward that
    takes gradients of submodules' weights calls them with the weights that it reads.
    """
    cls = original_class(module)
    computing = {owner for (owner, _), how in plan.how.items() if how == "computed"}  # these mask in their own calls
    if not mentions_function(cls, _WITH_OTHER_WEIGHTS):
        below = [path for path in plan.reads.get(id(module), ()) if "." in path]
        owners = {key_at(module, path)[0] for path in below}
        if owners and owners.isdisjoint(computing) and mentions_function(cls, _GRADIENTS):
            plan.functional.add(id(module))
        return
    keys = {path: key_at(module, path) for path, _ in module.named_parameters(remove_duplicate=False)}
    below = [path for path, key in keys.items() if "." in path and key in plan.how and key[0] not in computing]
    if below:
        plan.kinds[id(module)] = "substituted"
        plan.functional.add(id(module))
        plan.reads[id(module)] = list(dict.fromkeys([*plan.reads.get(id(module), []), *below]))
        name = plan.names[id(module)] or type(module).__name__
        plan.notes.append(f"{name}: masks are not applied to weights that it gives to submodules by functional_call")


def _unread(module: nn.Module, name: str, failure: str) -> str:
    """Return why a parameter has no mask if no traced call of the forward reads it."""
    if not mentions_own(module, [name]):
        return "not read by the forward"
    followed = f"that can be traced ({failure})" if failure else "that was traced"
    return f"its module's forward mentions it, but no call {followed} reads it"


def _add_uses(uses: dict[str, Use], module: nn.Module, graph: fx.Graph) -> None:
    """Add the uses of parameters in one more graph of a forward; of several uses, the first as a weight counts.

    Except that "computed" overrides a stored use: a weight computed in one call may be the parameter itself in another.
    """
    for path, use in parameter_uses(module, graph).items():
        before = uses.get(path)
        if before is None or before.how == "unmasked" or (use.how == "computed" and before.how in STORED):
            uses[path] = use


def _note_uses(module: nn.Module, uses: dict[str, Use], plan: ConversionPlan) -> None:
    """Add the layouts of weights, and notes about them, to the plan."""
    for path, use in uses.items():
        if use.layout is not None:
            plan.layouts.setdefault(key_at(module, path), use.layout)
        if use.eager:
            plan.eager.add(id(module))
        if use.how != "unmasked" and use.reason:
            plan.notes.append(f"{full_name(plan.names[id(module)], path)}: {use.reason}")


def _plan_untraceable(module: nn.Module, own: list[str], failure: str, plan: ConversionPlan) -> None:
    """Plan masks on the stored weights found in partial graphs, and on the weights of conv and linear layers."""
    original = as_original(module)
    uses: dict[str, Use] = {}
    below = reads_weights_of_children(module)
    for graph in partial_graphs(original):
        _add_uses(uses, original, graph)
        _leave_outside(module, original, graph, plan)
        if not below and all(name in uses and uses[name].how in STORED for name in own):
            break
    add_chosen(module, uses)
    computed = _leave_computed_below(module, uses, plan)
    paths = [path for path, use in uses.items() if use.how in STORED]
    for name in own:
        use = uses.get(name)
        plan.reasons[id(module), name] = (
            use.reason
            if use is not None and use.how == "unmasked" and use.reason not in ("", SHAPE_ONLY)  # else cut short
            else f"its module's forward cannot be traced: {failure}"
        )
    children: list[str] = []
    if isinstance(module, CONV_AND_LINEAR):
        part = PART.format("weight")  # a mask on a part would not mask the others
        children = ["weight"] if "weight" in own and all(use.reason != part for use in uses.values()) else []
    elif below:
        children = [
            f"{n}.weight"
            for n, child in module.named_children()
            if is_direct(original_class(child)) and own_weights(child) and f"{n}.weight" not in computed
        ]
    paths = list(dict.fromkeys([*paths, *children]))
    plan.dense |= {(id(module), name) for name in own if name in uses and name not in paths}
    if not paths:
        return
    _note_uses(module, {path: use for path, use in uses.items() if path in paths}, plan)
    _mask_by(module, "substituted", "substituted", paths, plan)
    name = plan.names[id(module)] or type(module).__name__
    plan.notes.append(
        f"{name}: its forward cannot be traced: {failure}; its weights are masked where they are stored, which holds "
        "unless it normalises them (check with sparsify.verify)"
    )
