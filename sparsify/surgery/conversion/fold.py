"""fold(): a plain model whose removed weights are zero."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...arguments import takes
from ...errors import SparsifyError
from ..copies import deep_copy
from ..discovery.weight_uses import computed_operands
from ..mask_state.masks import all_masked_parameters, effective_weight, is_computed, names_of_masked
from ..mask_state.new_ties import refuse_new_ties
from ..mask_state.parametrized import computed_names, make_plain
from ..mask_state.sharding import refuse_sharded
from ..masking.given_weights import with_given_weights
from ..masking.masked_classes import detach_masks
from ..module_walk import full_name, owner_of
from ..tracing.bytecode_scan import is_closed
from ..tracing.one_forward import TraceFailure, default_call, kinds_of_call, trace_forward

_LOG = logging.getLogger("sparsify")


@takes(model=nn.Module)
def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of `model` without masks: removed entries are +0.0, the keys are those of the dense model.

    For a module that computes its weight in the forward (weight standardisation), the copy stores the computed and
    masked weight: in a module of torch.nn if the forward is one conv or linear operation, else in the module itself,
    which then uses the stored weight as it is. Both are logged. `model` is not changed. Raises SparsifyError for a
    model sharded by fully_shard, and for weights tied after the conversion whose masks differ or are missing.
    """
    refuse_sharded(model, "fold", "fold it before it is cut, or save it and load the file")
    refuse_new_ties(model, "fold")
    computed: dict[str, dict[str, Tensor]] = {}
    parametrized: dict[str, nn.Parameter] = {}
    seen = computed_names(model)
    copies: dict[int, Any] = {}
    for weight in all_masked_parameters(model):
        path, _, name = weight.name.rpartition(".")
        effective = effective_weight(weight).masked_fill(~weight.mask, 0)
        if weight.name in seen:
            parametrized[seen[weight.name]] = nn.Parameter(effective, weight.parameter.requires_grad)
        elif is_computed(weight):
            computed.setdefault(path, {})[name] = effective
        else:
            parameter = weight.parameter
            copies[id(parameter)] = type(parameter)(effective, parameter.requires_grad)
    folded = plain_copy(model, copies)
    modules = dict(folded.named_modules(remove_duplicate=False))
    _put(modules, {w.name: copies[id(w.parameter)] for w in all_masked_parameters(model) if id(w.parameter) in copies})
    eager = {name for name, module in model.named_modules() if getattr(module, "computed_eagerly", False)}
    for path, weights in computed.items():
        plain = _with_weights(modules[path], weights, eager=path in eager)
        if path:
            setattr(*owner_of(folded, path), plain)
        else:
            folded = plain
    for name, stored in parametrized.items():
        path, _, own = name.rpartition(".")
        if own not in modules[path]._parameters:  # else already done under another name of the module
            make_plain(modules[path], own, stored)
    names = [full_name(path, name) for path, weights in computed.items() for name in weights]
    names += parametrized
    if names:
        _LOG.warning(
            "fold: %d weights are computed in the forward; the computed ones are stored in their place: %s",
            len(names),
            ", ".join(names),
        )
    return folded


def _put(modules: Mapping[str, nn.Module], folded: Mapping[str, nn.Parameter]) -> None:
    """Give the copied modules the folded parameters, which a `__deepcopy__` of the user's leaves out."""
    for name, parameter in folded.items():
        path, _, own = name.rpartition(".")
        if path not in modules or own not in modules[path]._parameters:
            raise SparsifyError(f"fold: a copy of the model has no {name}: one of its classes copies itself otherwise")
        modules[path]._parameters[own] = parameter


def plain_copy(model: nn.Module, copies: Mapping[int, Any] | None = None) -> nn.Module:
    """Return an unmasked copy of `model`, with its stored values, those under the masks included.

    `copies` maps ids of objects in the model to their replacements in the copy.
    """
    memo = dict(copies or {})
    for module in model.modules():
        memo |= {id(mask): mask for mask in (module._buffers[f"{name}_mask"] for name in names_of_masked(module))}
    plain: nn.Module = deep_copy(model, memo)
    for module in plain.modules():
        detach_masks(module)
    return plain


def _with_weights(module: nn.Module, weights: dict[str, Tensor], *, eager: bool) -> nn.Module:
    """Return an equivalent of `module` that stores its computed weights; may change `module` in place."""
    plain = _as_plain_module(module, weights) if list(weights) == ["weight"] else None
    if plain is not None:
        return plain.train(module.training)
    for name, weight in weights.items():
        module._parameters[name] = nn.Parameter(weight, module._parameters[name].requires_grad)  # type: ignore[union-attr]
    return with_given_weights(module, list(weights), eager=eager)


def _as_plain_module(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module | None:
    """Return an equivalent module of torch.nn if the forward is one conv or linear operation, else None."""
    cls = type(module)
    if not is_closed(cls) or len(kinds_of_call(cls.forward)) > 2 or "forward" in module.__dict__:
        return None
    found = []
    for training in (True, False):
        try:
            graph = trace_forward(module, default_call(cls.forward), training=training)
        except TraceFailure:
            return None
        for node in computed_operands(module, graph).get("weight", ()):
            with graph.inserting_before(next(iter(graph.nodes))):
                node.replace_all_uses_with(graph.get_attr("weight"))
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        found.append([node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")])
    if [len(operations) for operations in found] != [1, 1] or _described(found[0][0]) != _described(found[1][0]):
        return None
    return _plain_module(module, found[0][0], weights["weight"])


def _described(operation: fx.Node) -> str:
    return operation.format_node() or ""


def _plain_module(module: nn.Module, operation: fx.Node, stored: Tensor) -> nn.Module | None:
    """Return the module of torch.nn for one conv or linear operation with the weight `stored`, or None."""
    cls = _PLAIN.get(operation.target)
    given: dict[str, Any] = dict(zip(_ARGUMENTS, operation.args, strict=False)) | operation.kwargs
    names = {name: given.pop(name, None) for name in ("input", "weight", "bias")}
    weight, bias = (module._parameters.get(getattr(names[name], "target", "")) for name in ("weight", "bias"))
    nodes = [value for value in given.values() if isinstance(value, fx.Node)]
    if cls is None or weight is None or (bias is None) != (names["bias"] is None) or nodes:
        return None
    inputs = weight.shape[1] * given.get("groups", 1)
    plain: nn.Module = cls(
        inputs, len(weight), *([weight.shape[2:]] if weight.dim() > 2 else []), **given, device="meta"
    )
    plain.register_parameter("weight", nn.Parameter(stored, weight.requires_grad))
    plain.register_parameter("bias", bias)
    return plain


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PLAIN: dict[Any, Any] = {F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
