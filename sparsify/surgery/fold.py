"""fold(): a plain model, its removed weights zero."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from .forwards import detach_masks
from .graphs import computed_operands
from .masks import all_masked_parameters, effective_weight, is_computed, names_of_masked
from .tracing import default_call, trace_forward

_LOG = logging.getLogger("sparsify")


def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of `model`: what masks remove is +0.0, there are no masks, the keys are the dense model's.

    A module that computes its weight in the forward (weight standardisation) cannot hold zeros in its parameter: there
    the computed, masked weight is stored, in a plain convolution say, which is logged. `model` is not changed.
    """
    computed: dict[str, dict[str, Tensor]] = {}
    copies: dict[int, Any] = {}
    for weight in all_masked_parameters(model):
        path, _, name = weight.name.rpartition(".")
        effective = effective_weight(weight).masked_fill(~weight.mask, 0)
        if is_computed(weight):
            computed.setdefault(path, {})[name] = effective
        else:
            parameter = weight.parameter
            copies[id(parameter)] = type(parameter)(effective, parameter.requires_grad)
    folded = plain_copy(model, copies)
    modules = dict(folded.named_modules(remove_duplicate=False))
    for path, weights in computed.items():
        folded = _replace(folded, path, _with_weights(modules[path], weights))
    if computed:
        _LOG.warning(
            "fold: %d weights are computed in the forward; the computed ones are stored, in plain modules: %s",
            sum(map(len, computed.values())),
            ", ".join(f"{path}.{name}" if path else name for path, weights in computed.items() for name in weights),
        )
    return folded


def plain_copy(model: nn.Module, copies: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a copy of `model` as it was before the conversion, values under the masks included.

    `copies` holds, by the id of the original, what is to stand in the copy for objects in the model.
    """
    memo = dict(copies or {})
    for module in model.modules():
        # deepcopy takes longer for the empty dicts of hooks than for all else.
        memo |= {id(held): type(held)() for held in module.__dict__.values() if type(held) is OrderedDict and not held}
        memo |= {id(mask): mask for mask in (module._buffers[f"{name}_mask"] for name in names_of_masked(module))}
    plain = copy.deepcopy(model, memo)
    for module in plain.modules():
        detach_masks(module)
    return plain


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


def _with_weights(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Return a module that does in eval mode what `module` does, its computed weights stored under their names."""
    graph = trace_forward(module, default_call(type(module).forward), training=False)
    for name, nodes in computed_operands(module, graph).items():
        module._parameters[name] = nn.Parameter(weights[name])
        with graph.inserting_before(next(iter(graph.nodes))):
            stored = graph.get_attr(name)
        for node in nodes:
            node.replace_all_uses_with(stored)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    operations = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    plain = _plain_module(module, operations[0]) if len(operations) == 1 and list(weights) == ["weight"] else None
    folded = plain or fx.GraphModule(module, graph, class_name=type(module).__name__)
    return folded.train(module.training)


def _plain_module(module: nn.Module, operation: fx.Node) -> nn.Module | None:
    """Return torch.nn's module that does one conv or linear operation of a traced forward, if there is one."""
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
    plain.register_parameter("weight", weight)
    plain.register_parameter("bias", bias)
    return plain


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PLAIN: dict[Any, Any] = {F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
