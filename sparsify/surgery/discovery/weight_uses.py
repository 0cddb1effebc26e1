"""Find the parameters that a traced forward uses as weights of linear operations, and how (def-use analysis)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..mask_state.masks import Layout
from ..module_walk import owner_of
from ..side_effects import changed_buffers
from ..tracing.bytecode_scan import CONV_AND_LINEAR
from ..tracing.subgraphs import ancestors, subgraph
from .linear_ops import Operand, is_conv_or_linear, name_of, operands, weight_argument
from .lost_zeros import loses_zeros, passes_by
from .node_kinds import is_metadata
from .position_tables import is_table
from .rearranged import Rearrangements

# Positions of the weights among the arguments of functions that are neither conv nor linear; see `_weights_of`.
_WEIGHTS_OF = {
    "multi_head_attention_forward": (5, 11),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), (2, 3)),
}

STORED = ("operand", "source")  # values of `Use.how` for which the mask goes on the stored weight
PART = "part of the weight computed with {}"
SHAPE_ONLY = "only its shape is read"
_ALSO = "part of a computed weight, and also used in another way"
_LOST = "zeros in it would not be zeros in the weight computed from it"


@dataclass(frozen=True)
class Use:
    """How the operations of a traced forward use one parameter.

    `how` is "operand" (the parameter itself is the weight of a conv or linear), "computed" (the forward computes a
    weight from it, for a conv, linear or matrix product), "source" (the stored parameter is masked: it is rearranged
    first, or is an operand of a matrix product or of another function) or "unmasked". `reason` says why it is unmasked;
    for a weight it is a note for the report, or "". `layout` is None if unknown. `eager`: the computed weight is an
    operand of a matrix product, or is rearranged first; torch.compile hides that from a mode, so the module runs
    eagerly.
    """

    how: str
    reason: str = ""
    layout: Layout | None = None
    eager: bool = False


def parameter_uses(module: nn.Module, graph: fx.Graph) -> dict[str, Use]:
    """Return {path: use} of each float parameter of two or more dimensions that a traced forward reads."""
    return look(module, graph, layouts=True).settled()


def look(module: nn.Module, graph: fx.Graph, *, layouts: bool = False) -> Found:
    """Return the uses of parameters in a traced forward; `layouts`: also find the layouts of weights."""
    found = Found(module, graph, layouts)
    nodes = list(graph.nodes) if found.sources else []
    layers = [node for node in nodes if is_conv_or_linear(node)]
    # The operands of a product that computes a layer's weight (a mixture of experts) are not weights themselves.
    making = {node for layer in layers for node in ancestors(weight_argument(layer), modules=False)}
    for node in nodes:
        for operand in operands(node) if node not in making or node in layers else ():
            others = [other for other in operand.others if isinstance(other, fx.Node)]
            if node in layers or any(found.known.depends[other] for other in others):
                found.look_at(node, operand)
    return found


class Found:
    """The uses of parameters found in a graph, by path; `cores` are the nodes of the weights computed from them."""

    def __init__(self, module: nn.Module, graph: fx.Graph, layouts: bool) -> None:
        self.module, self.graph, self.sources = module, graph, _sources(module, graph)
        self.layouts = layouts
        self.known = Rearrangements(module, graph, self.sources)
        self.uses: dict[str, Use] = {}
        self.computed: dict[str, Use] = {}
        self.cores: dict[str, fx.Node] = {}
        self.formed: dict[str, list[fx.Node]] = {}  # path -> all weights computed from it

    def settled(self) -> dict[str, Use]:
        """Return {path: use} of every source."""
        uses = self.computed | self.uses
        for path in {*self.computed} & {*self.uses}:
            parts = [name for name, use in self.computed.items() if use.reason == PART.format(path)]
            uses |= dict.fromkeys([path, *parts] if parts else [], Use("unmasked", _ALSO))
        for source, path in self.sources.items():
            if path in self.formed and path in uses:
                uses[path] = self._where_zeros_stay(source, path, uses[path])
        return {path: _reconcile(self, source, path, uses.get(path)) for source, path in self.sources.items()}

    def _where_zeros_stay(self, source: fx.Node, path: str, use: Use) -> Use:
        """Return the use of a parameter from which weights are computed, given what was found for it.

        If the forward reads it in another way as well, the mask goes on the stored parameter; that needs a computation
        in which zeros stay zeros.
        """
        if use.how == "computed" and passes_by(source, self.cores[path]):
            use = Use("source", layout=use.layout)
        if use.how in STORED and any(self._loses(core) for core in self.formed[path]):
            return Use("unmasked", _LOST)
        return use

    def _loses(self, core: fx.Node) -> bool:
        shapes = {source: self.module.get_parameter(path).shape for source, path in self.sources.items()}
        return loses_zeros(core, shapes, partial(self._value, core))

    def _value(self, core: fx.Node, through: Mapping[fx.Node, Callable[[Tensor], Tensor]]) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), changed_buffers(self.module, []):
            return subgraph(self.graph, core, through)(self.module)

    def look_at(self, node: fx.Node, operand: Operand) -> None:
        """Note the use of the parameters from which an operand of a conv, linear or matrix product is computed."""
        weight, product = operand.node, not is_conv_or_linear(node)
        bases = self.known.bases(weight)
        behind = ancestors(bases[0], modules=False)
        reached = {source: path for source, path in self.sources.items() if source in behind}
        for source in self.known.arranged[weight]:
            path = self.sources[source]
            how = "operand" if weight is source and not product else "source"
            if product and is_table(path, node):
                self.uses.setdefault(path, Use("unmasked", "a table of positions"))
            elif (before := self.uses.get(path)) is None or before.how == "unmasked":
                layout = self._layout(operand, source, self.module.get_parameter(path).shape)
                self.uses[path] = Use(how, layout=layout)
            elif how == "operand":
                self.uses[path] = Use(how, layout=before.layout)
        if self.known.arranged[weight] or not reached:
            return
        if not any(n.op == "placeholder" for n in ancestors(bases[0])):
            self._compute(operand, bases, reached, product)
        elif not product:
            self.uses |= {path: Use("source") for path in reached.values() if path not in self.uses}

    def _layout(self, operand: Operand, source: fx.Node, shape: torch.Size) -> Layout | None:
        return self.known.layout(operand, source, shape) if self.layouts else None

    def _compute(self, operand: Operand, bases: list[fx.Node], reached: dict[fx.Node, str], product: bool) -> None:
        """Note a weight computed only from parameters: the mask goes on the result if a parameter has its shape.

        If the result is rearranged afterwards, the mask goes on the first form that has the shape of a parameter.
        """
        registered = [name for name, _ in self.module.named_parameters(remove_duplicate=False)]
        paths = sorted(reached.values(), key=registered.index)
        alike: list[str] = []
        chosen: fx.Node | None = None
        for core in bases:
            if alike or any(node.op == "placeholder" for node in ancestors(core)):
                break
            weight = self._value(core, {})
            if not isinstance(weight, Tensor):  # several results, or a gradient that is not there yet
                continue
            # A complex weight cannot be stored in place of the real parameters that it is made of.
            same = [path for path in paths if self.module.get_parameter(path).shape == weight.shape]
            alike = [] if weight.is_complex() else same
            chosen = core
        if chosen is None:
            return
        for path in paths:
            self.formed.setdefault(path, []).append(chosen)
        if not alike:
            several = f"multiplied or added up with {', '.join(paths[1:])}: each has a mask of its own"
            self.computed |= {path: Use("source", several if path == paths[0] and paths[1:] else "") for path in paths}
        elif self.cores.setdefault(alike[0], chosen) is chosen:
            eager = product or operand.node is not chosen
            self.computed[alike[0]] = Use("computed", "", self._layout(operand, chosen, weight.shape), eager)
            part = Use("unmasked", PART.format(alike[0]))
            self.computed |= {path: part for path in paths if path != alike[0]}
        else:  # one mask can serve only one computed weight
            self.computed |= dict.fromkeys(paths, Use("unmasked", _ALSO)) if paths[1:] else {alike[0]: Use("source")}


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


def _reconcile(found: Found, source: fx.Node, path: str, use: Use | None) -> Use:
    """Return the use of a parameter, given its use as a weight (or None) and all nodes that read it."""
    known = found.known
    readers = [user for user in source.users if not is_metadata(user)]
    if any(source in known.arranged[table] for table in known.embeddings):
        return Use("unmasked", "also read by an embedding, which stays dense")
    if source in known.tables:
        return Use("unmasked", known.tables[source])
    if use is not None and use.how != "operand":
        return use
    dense = [user for user in readers if is_conv_or_linear(user) and weight_argument(user) is source]
    if use is not None:
        return use if len(dense) == len(readers) else Use("source", layout=use.layout)
    owner, name = owner_of(found.module, path)
    dense_owner = name == "weight" and isinstance(owner, CONV_AND_LINEAR)
    if readers and (dense_owner or any(_convolves(user) or source in _weights_of(user) for user in readers)):
        return Use("source")
    below = [str(user.target) for user in readers if user.op == "call_module"]
    if below:
        return Use("unmasked", f"given as an argument to {below[0]}, where no mask is put on arguments")
    return Use("unmasked", "not the weight of a conv or linear operation" if readers else SHAPE_ONLY)


def _convolves(node: fx.Node) -> bool:
    """Return whether a node calls a conv or linear function of another library: deform_conv2d, conv2d_same."""
    return node.op == "call_function" and ("conv" in name_of(node) or "linear" in name_of(node))


def _weights_of(node: fx.Node) -> list[Any]:
    """Return the weights among the arguments of an attention or recurrent function."""
    positions = _WEIGHTS_OF.get(name_of(node), ())
    named = [value for name, value in node.kwargs.items() if "weight" in name or name in ("w_ih", "w_hh")]
    return [*(node.args[p] for p in positions if p < len(node.args)), *named] if positions else []


def computed_operands(module: nn.Module, graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Return {path of a parameter: nodes of the weights that a traced forward computes from it}."""
    found = look(module, graph)
    return {path: [found.cores[path]] for path, use in found.settled().items() if use.how == "computed"}
