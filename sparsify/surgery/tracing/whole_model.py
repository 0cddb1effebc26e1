"""trace(): the whole model as one graph with masked operations as nodes, traced on demand from a copy."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, fx, nn

from ... import ops
from ...arguments import takes
from ...errors import SparsifyError
from ..copies import deep_copy
from ..side_effects import unchanged
from .leaf_functions import Wrapped, describe, wrap_innermost
from .one_forward import ATTEMPTS, Call, LocalTracer, default_call


class WholeTracer(LocalTracer):
    """Traces a whole model down to torch functions; modules of torch.nn and of the classes in `leaves` are one node."""

    def __init__(self, call: Call, leaves: set[type], *, proxy_buffers: bool) -> None:
        super().__init__(call, proxy_buffers=proxy_buffers)
        self.leaves = leaves
        self.entered: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.leaves or fx.Tracer.is_leaf_module(self, m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        # After an error, the stack holds the modules that were being traced, the innermost last.
        self.entered.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return result


@takes(model=nn.Module)
def trace(model: nn.Module) -> fx.GraphModule:
    """Return the whole model as one `fx.GraphModule`, traced from a copy, with masked operations as nodes.

    Optional arguments of the forward take their defaults. Code that fx cannot trace becomes one node: the innermost
    function that is called by a global name, or else the innermost module. The graph is valid for the model's current
    mode (train or eval) only. `model` is not changed. Raises SparsifyError, which names the line, if the model's own
    forward cannot be traced.
    """
    if "forward" in model.__dict__:
        raise SparsifyError(
            f"trace: the forward of {type(model).__name__} was replaced on the object; fx cannot see it"
        )
    reason = ""
    for proxy_buffers in (True, False):
        root = deep_copy(model)
        leaves: set[type] = set()
        wrapped = Wrapped()
        _wrap_known_functions(wrapped)
        for _ in range(ATTEMPTS):
            tracer = WholeTracer(default_call(type(root).forward), leaves, proxy_buffers=proxy_buffers)
            try:
                with unchanged(root), wrapped.active():
                    graph = tracer.trace(root)
                    constants = {k: v for k, v in root.__dict__.items() if k.startswith("_tensor_constant")}
                    graph_module = _graph_module(root, graph, constants)
                return graph_module
            except Exception as error:  # noqa: BLE001 - the model's own code raises whatever it likes on a proxy
                reason = describe(error)
                if wrap_innermost(error, wrapped):
                    continue
                inner = [module for module in tracer.entered if module is not root]
                if not inner:
                    break
                leaves.add(type(inner[-1]))
    raise SparsifyError(f"trace: {type(model).__name__}: the model's own forward cannot be traced: {reason}")


def _graph_module(root: nn.Module, graph: fx.Graph, constants: dict[str, Tensor]) -> fx.GraphModule:
    for name, value in constants.items():
        setattr(root, name, value)
    _join_masks(graph)
    graph_module = fx.GraphModule(root, graph, class_name=type(root).__name__)
    graph_module.train(root.training)
    return graph_module


def _join_masks(graph: fx.Graph) -> None:
    """Merge each conv or linear operation and the mask on its weight into one masked operation, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in ops.MASKED:
            continue
        weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        if weight.target is ops.mask_weight and list(weight.users) == [node]:
            kwargs = {name: value for name, value in node.kwargs.items() if name not in ("input", "weight")}
            input = node.args[0] if node.args else node.kwargs["input"]
            with graph.inserting_before(node):
                masked = graph.call_function(ops.MASKED[node.target], (input, *weight.args, *node.args[2:]), kwargs)
            node.replace_all_uses_with(masked)
            graph.erase_node(node)
            graph.erase_node(weight)


def _wrap_known_functions(wrapped: Wrapped) -> None:
    """Add to `wrapped` the functions that timm, if imported, lists as not traceable."""
    listing = sys.modules.get("timm.layers._fx")
    if listing is None:
        return
    names = {function.__name__: function for function in listing.get_notrace_functions()}
    for path, module in list(sys.modules.items()):
        if path.startswith("timm."):
            for name in names.keys() & vars(module).keys():
                if vars(module)[name] is names[name]:
                    wrapped.add(vars(module), name)
