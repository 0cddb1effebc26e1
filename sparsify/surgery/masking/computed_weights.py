"""Evaluate the weight that a module's forward computes from a parameter, for scores and for fold."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, fx, nn

from ...errors import SparsifyError
from ..discovery.weight_uses import computed_operands, parameter_uses
from ..side_effects import changed_buffers, in_mode
from ..tracing.one_forward import TraceFailure
from ..tracing.own_graphs import as_original, kinds, rarer_kinds, trace_kind
from ..tracing.subgraphs import subgraph
from .substituted_call import effective_weights, substituted_copy

_SEED = 0


def computed_weight(self: nn.Module, name: str) -> Tensor:
    """Return the weight that the module's forward computes from its parameter `name` in eval mode, unmasked.

    The forward is traced at every call, since it may read attributes that have changed. Random numbers come from a
    fixed seed, and the generators are restored. Raises SparsifyError if no traced call computes a weight from `name`.
    """
    original = as_original(self)
    copied = substituted_copy(self, effective_weights(self), type(original))
    device = original.get_parameter(name).device
    cuda = [device] if device.type == "cuda" else []
    with in_mode(original, False), torch.random.fork_rng(devices=cuda), changed_buffers(original, []):
        for kind in chain(kinds(original), rarer_kinds(original)):
            try:
                graph = trace_kind(original, kind)
            except TraceFailure as error:
                original.__dict__.update(error.constants)
                copied.__dict__.update(error.constants)
                graph = error.graph or fx.Graph()
            use = parameter_uses(original, graph).get(name)
            if use is not None and use.how in ("operand", "source"):  # computed only in train mode
                return copied.get_parameter(name).detach()
            for operand in computed_operands(original, graph).get(name, ()):
                torch.manual_seed(_SEED)
                result: Tensor = subgraph(graph, operand)(copied)
                return result
    raise SparsifyError(f"{type(self).__name__}: no call of its forward computes a weight from '{name}' any more")
