"""Graphs of traced forwards: which parameters go into conv and linear operations, and putting their masks in."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import ops
from .candidates import CONV_AND_LINEAR, METADATA
from .effects import changed_buffers

_NUMBERS = count()
# Where functions that are neither conv nor linear take their weights, by position; by keyword they are named so.
_WEIGHTS_OF = {
    "multi_head_attention_forward": (5, 11),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), (2, 3)),
}
# Operations that only arrange entries anew: the mask of a weight that passes nothing else goes on the parameter.
_ARRANGING = frozenset(
    """t T mT transpose swapaxes permute movedim view reshape flatten unflatten squeeze unsqueeze getitem cat concat
    stack chunk split contiguous clone flip""".split()
)


@dataclass(frozen=True)
class Use:
    """How one weight enters the operations of a traced forward.

    `how` is "operand" (the parameter itself goes into a conv or linear), "computed" (what is computed from it does),
    "source" (it goes somewhere else, and is masked where it is read) or "unmasked", with `reason`.
    """

    how: str
    reason: str = ""


def parameter_uses(module: nn.Module, graph: fx.Graph) -> dict[str, Use]:
    """Return, by path, how each float parameter of two or more dimensions that a traced forward reads is used."""
    uses: dict[str, Use] = {}
    computed: dict[str, Use] = {}
    operands: dict[str, fx.Node] = {}
    sources = _sources(module, graph)
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in ops.MASKED:
            continue
        weight = _weight_argument(node)
        behind = _ancestors(weight, through_modules=False)
        reached = [source for source in sources if source in behind]
        if weight in sources:
            uses[sources[weight]] = Use("operand")
        elif len(reached) > 0 and not any(n.op == "placeholder" for n in _ancestors(weight)):
            found = _computed_uses(module, graph, weight, {s: sources[s] for s in reached})
            again = {path: Use("source") for path in found if operands.setdefault(path, weight) is not weight}
            computed |= found | again  # one mask fits one computed weight only
        else:
            uses |= {sources[source]: Use("source") for source in reached}
    uses = computed | uses
    for source, path in sources.items():
        uses[path] = _reconcile(module, source, path, uses.get(path))
    return uses


def _sources(module: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {
        node: node.target
        for node in graph.nodes
        if node.op == "get_attr"
        and (parameter := parameters.get(node.target)) is not None
        and parameter.dim() > 1
        and parameter.is_floating_point()
    }


def _weight_argument(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs["weight"]


def _ancestors(node: Any, *, through_modules: bool = True) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node] if isinstance(node, fx.Node) else []
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            if through_modules or current.op != "call_module":
                waiting.extend(current.all_input_nodes)
    return found


def _computed_uses(module: nn.Module, graph: fx.Graph, weight: fx.Node, reached: dict[fx.Node, str]) -> dict[str, Use]:
    """A weight computed from parameters alone: the mask goes on the result if one parameter has its shape."""
    if all(node in reached or (node.op[:5] == "call_" and _name(node) in _ARRANGING) for node in _ancestors(weight)):
        return {path: Use("source") for path in reached.values()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), changed_buffers(module, []):
        shape = subgraph(graph, weight)(module).shape
    alike = [path for path in reached.values() if module.get_parameter(path).shape == shape]
    if len(alike) != 1:
        return {path: Use("source") for path in reached.values()}
    reason = f"only scales the weight computed from {alike[0]}"
    return {path: Use("computed") if path == alike[0] else Use("unmasked", reason) for path in reached.values()}


def _reconcile(module: nn.Module, source: fx.Node, path: str, use: Use | None) -> Use:
    """Settle a parameter that something else than conv and linear operations reads as well, or alone."""
    readers = [user for user in source.users if not _reads_metadata(user)]
    if any(user.target in (F.embedding, F.embedding_bag) for user in readers):
        return Use("unmasked", "read by an embedding too, which stays dense")
    if use is not None and use.how != "operand":
        return use
    dense = [user for user in readers if user.target in ops.MASKED and _weight_argument(user) is source]
    if use is not None:
        return use if len(dense) == len(readers) else Use("source")
    owner_path, _, name = path.rpartition(".")
    owner = module.get_submodule(owner_path)
    dense_owner = name == "weight" and isinstance(owner, CONV_AND_LINEAR)
    if readers and (dense_owner or any(_convolves(user) or source in _weights_of(user) for user in readers)):
        return Use("source")
    return Use("unmasked", "not the weight of a conv or linear operation" if readers else "only its shape is read")


def _convolves(node: fx.Node) -> bool:
    """Whether a node is a function that convolves by another name: deform_conv2d, conv2d_same."""
    return node.op == "call_function" and ("conv" in _name(node) or "linear" in _name(node))


def _weights_of(node: fx.Node) -> list[Any]:
    """Return what a node that is an attention or recurrent function takes as weights."""
    positions = _WEIGHTS_OF.get(_name(node), ())
    named = [value for name, value in node.kwargs.items() if "weight" in name or name in ("w_ih", "w_hh")]
    return [*(node.args[p] for p in positions if p < len(node.args)), *named] if positions else []


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _reads_metadata(node: fx.Node) -> bool:
    name = node.args[1] if node.target is getattr and len(node.args) > 1 else node.target
    return name in METADATA


def computed_operands(module: nn.Module, graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Return, by the path of the parameter, what a traced forward computes from it and takes for a weight."""
    uses = parameter_uses(module, graph)
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in ops.MASKED:
            weight = _weight_argument(node)
            for source, path in _sources(module, graph).items():
                if uses[path].how == "computed" and source in _ancestors(weight):
                    found.setdefault(path, []).append(weight)
    return found


def subgraph(graph: fx.Graph, result: fx.Node) -> Callable[..., Tensor]:
    """Return a function of the module that computes one node, which depends on no argument."""
    part = fx.Graph()
    wanted = _ancestors(result)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in wanted:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[result])
    return compiled(part, "effective weight")


def compiled(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """Return a graph as a function of the module and the tensors it was traced for; `name` is for tracebacks."""
    code = graph.python_code("self")
    filename = f"<sparsify {name} {next(_NUMBERS)}>"
    # Tracebacks of generated code show its lines.
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(code.src, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function
