"""Parts of a traced forward as callable functions."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from torch import Tensor, fx

_NUMBERS = count()


def ancestors(node: Any, *, modules: bool = True) -> set[fx.Node]:
    """Return the nodes that `node` is computed from, and itself; without `modules`, not through module calls."""
    found: set[fx.Node] = set()
    waiting = [node] if isinstance(node, fx.Node) else []
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            if modules or current.op != "call_module":
                waiting.extend(current.all_input_nodes)
    return found


def subgraph(
    graph: fx.Graph, result: fx.Node, through: Mapping[fx.Node, Callable[[Tensor], Tensor]] | None = None
) -> Callable[..., Tensor]:
    """Return a function of the module that computes the node `result`, which must not depend on an input.

    `through` maps nodes to functions that their values go through before others read them.
    """
    part = fx.Graph()
    wanted = ancestors(result)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in wanted:
            copies[node] = part.node_copy(node, copies.__getitem__)
            if through and node in through:
                copies[node] = part.call_function(through[node], (copies[node],))
    part.output(copies[result])
    return compiled(part, "effective weight")


def follow_writes(graph: fx.Graph) -> None:
    """Let nodes after an operation that writes to a tensor in place read its result, in place; not for parameters."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        writes = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        written = node.args[0] if writes and node.args and node.op in ("call_method", "call_function") else None
        if isinstance(written, fx.Node) and written.op != "get_attr":
            later = {user for user in written.users if order[user] > order[node]}
            written.replace_all_uses_with(node, later.__contains__)


def compiled(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """Return a graph as a function of the module and the graph's inputs; `name` appears in tracebacks."""
    code = graph.python_code("self")
    filename = f"<sparsify {name} {next(_NUMBERS)}>"
    # So that tracebacks show the lines of the generated code.
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(code.src, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function
