"""fold(): a plain model, its removed weights zero."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, fx, nn

from .. import ops
from .forwards import detach_masks
from .graphs import independent_weights
from .masks import all_masked_weights, effective_weight, is_computed
from .tracing import default_call, trace_forward

_LOG = logging.getLogger("sparsify")


def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of `model`: removed weights are +0.0, there are no masks, the keys are the dense model's.

    A module that computes its weight in the forward (weight standardisation) cannot hold zeros in its parameter: there
    the computed, masked weight is stored in a plain convolution, which is logged. `model` is not changed.
    """
    folded = plain_copy(model)
    stored = []
    modules = dict(folded.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for weight in all_masked_weights(model):
            path, _, name = weight.name.rpartition(".")
            effective = torch.where(weight.mask, effective_weight(weight), 0)
            if is_computed(weight):
                folded = _replace(folded, path, _with_weight(modules[path], effective))
                stored.append(weight.name)
            else:
                modules[path].get_parameter(name).copy_(effective)
    if stored:
        _LOG.warning(
            "fold: %d weights are computed in the forward; the computed ones are stored, in plain convolutions: %s",
            len(stored),
            ", ".join(stored),
        )
    return folded


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` as it was before the conversion, values under the masks included."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        detach_masks(module)
    return plain


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model


def _with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """Return a module that does in eval mode what `module` does, its computed weight replaced by a parameter."""
    graph = trace_forward(module, default_call(type(module).forward), training=False)
    (computed,) = independent_weights(graph)
    with graph.inserting_before(computed):
        stored = graph.get_attr("weight")
    computed.replace_all_uses_with(stored)
    graph.eliminate_dead_code()
    operations = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    attributes = {"weight": nn.Parameter(weight)}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target != "weight":
            attributes[node.target] = module.get_parameter(node.target)
    bias = next((value for name, value in attributes.items() if name != "weight"), None)
    if isinstance(module, nn.Conv2d) and len(operations) == 1 and operations[0].target in ops.MASKED:
        return _plain_convolution(module, attributes["weight"], bias).train(module.training)
    holder = nn.Module()
    for name, value in attributes.items():
        holder.register_parameter(name, value)
    return fx.GraphModule(holder, graph, class_name=type(module).__name__).train(module.training)


def _plain_convolution(module: nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Conv2d:
    convolution = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        module.groups,
        bias=bias is not None,
        device="meta",
    )
    convolution.weight = weight
    convolution.bias = bias
    return convolution
