"""Data flow in a traced forward: which nodes depend on an input, and which only rearrange entries of parameters.

A rearranged parameter that is an operand of a product is a weight, and the mask goes on the stored parameter. To find
which of its dimensions becomes which dimension of the operand, tensors of coordinates are rearranged in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..mask_state.masks import Layout
from .linear_ops import Operand, name_of, roles
from .node_kinds import CASTS, JOINING, is_metadata, is_rearranging, nodes_in, read_nodes, rearranged_argument

_MOST_INDEX_DIMENSIONS = 3


class Rearrangements:
    """The data flow of one graph.

    `depends`: whether a node's values depend on an input; `arranged`: the sources whose entries it rearranges, if it
    does nothing else; `embeddings`: the tables of embedding calls; `tables`: sources that are lookup tables and not
    weights, with the reason.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, sources: Mapping[fx.Node, str]) -> None:
        self.module, self.sources = module, sources
        self.depends: dict[fx.Node, bool] = {}
        self.arranged: dict[fx.Node, frozenset[fx.Node]] = {}
        self.tables: dict[fx.Node, str] = {}
        self.embeddings: list[fx.Node] = []  # the tables of embedding calls, rearranged or not
        self._constant: dict[fx.Node, bool] = {}  # nodes that depend on no parameter and no input
        for node in graph.nodes:
            if node.target in (F.embedding, F.embedding_bag):
                self.embeddings += nodes_in(node.kwargs.get("weight", node.args[1:2]))
            self.depends[node] = node.op == "placeholder" or (
                node.op != "get_attr" and any(self.depends[other] for other in read_nodes(node))
            )
            self._constant[node] = (
                node not in sources and not self.depends[node] and all(self._constant[n] for n in read_nodes(node))
            )
            self.arranged[node] = frozenset([node]) if node in sources else self._arranged(node)

    def _arranged(self, node: fx.Node) -> frozenset[fx.Node]:
        if not is_rearranging(node):
            return frozenset()
        parts = nodes_in(rearranged_argument(node))
        if not parts or not all(self.arranged[part] or self._constant[part] for part in parts):
            return frozenset()
        found = frozenset(source for part in parts for source in self.arranged[part])
        reason = self._looked_up(node) if found and name_of(node) in ("getitem", "index_select") else ""
        if reason:
            self.tables |= dict.fromkeys(found, reason)
            return frozenset()
        return found

    def _looked_up(self, node: fx.Node) -> str:
        """Return why an index makes its source a lookup table, or ""."""
        index = node.args[-1] if node.args[1:] else node.kwargs.get("index")
        for one in index if isinstance(index, (tuple, list)) else [index]:
            if not isinstance(one, fx.Node):
                continue
            if self.depends[one]:
                # An input selects among matrices (experts), or among vectors, as an embedding does.
                if self._dimensions(rearranged_argument(node)) - 1 < 2:
                    return "looked up by an input, as an embedding is"
            elif not self._is_number(one) and not (one.op == "get_attr" and self._attribute(one).dim() == 1):
                return "a table that is looked up by position"
        return ""

    def _is_number(self, node: fx.Node) -> bool:
        """Return whether a node is a number computed from shapes."""
        if is_metadata(node):
            return True
        own = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
        return node.op == "call_function" and own and all(map(self._is_number, node.all_input_nodes))

    def _attribute(self, node: fx.Node) -> Tensor:
        return attrgetter(str(node.target))(self.module)  # type: ignore[no-any-return]

    def _dimensions(self, node: Any) -> int:
        (source, *_) = self.arranged[node]
        arranged: Tensor = self.coordinates(node, source, self._attribute(source).shape, 0, 0)
        return arranged.dim()

    def bases(self, node: fx.Node) -> list[fx.Node]:
        """Return the chain of rearrangements that ends in `node`, the first base first, `node` last."""
        found = [node]
        while is_rearranging(found[0]) and isinstance(inner := rearranged_argument(found[0]), fx.Node):
            found.insert(0, inner)
        return found

    def layout(self, operand: Operand, source: fx.Node, shape: torch.Size) -> Layout | None:
        """Return the layout that `source`, of `shape`, has as it is rearranged into `operand`, None if unknown."""
        for index_dimensions in range(_MOST_INDEX_DIMENSIONS + 1):
            try:
                placed = [
                    self.coordinates(operand.node, source, shape, dimension, index_dimensions)
                    for dimension in range(len(shape))
                ]
            except Exception:  # noqa: BLE001 - a size that is not known may fail anywhere
                return None
            letters = roles(operand.pattern, placed[0].dim())
            if letters is not None:
                return _layout(placed, letters, operand.groups)
        return None

    def coordinates(self, node: Any, source: fx.Node, shape: torch.Size, dimension: int, index_dimensions: int) -> Any:
        """Return the value of `node` if the entries of `source` were their coordinates in `dimension`, and others -1.

        An index that depends on an input is taken to have `index_dimensions` dimensions and to select the first entry.
        Raises ValueError if the node is not a rearrangement.
        """
        if node is source:
            sizes = [1] * len(shape)
            sizes[dimension] = -1
            return torch.arange(shape[dimension], dtype=torch.int32).reshape(sizes).expand(shape)
        if node.op == "get_attr":
            return torch.full((), -1, dtype=torch.int32).expand(self._attribute(node).shape)
        if not is_rearranging(node):
            raise ValueError(f"{node} is computed: its shape is not known")
        name = name_of(node)
        given = rearranged_argument(node)
        if name in JOINING:  # the shapes of computed operands are unknown
            given = [part for part in given if part.op == "get_attr" or self.arranged[part] or is_rearranging(part)]
        given = fx.node.map_arg(
            given, lambda inner: self.coordinates(inner, source, shape, dimension, index_dimensions)
        )
        if name in CASTS:
            return given
        if name in ("getitem", "index_select"):
            fill = self._index if name == "getitem" else self._number_or_index
            rest = [fill(value, index_dimensions) for value in node.args[1:]]
        else:
            rest = [*_sizes(name, given, [self._known(value) for value in node.args[1:]])]
        named = {k: self._known(v) for k, v in node.kwargs.items() if k not in ("input", "tensors", "self")}
        if node.target is getattr:
            return getattr(given, str(node.args[1]))
        return getattr(given, name)(*rest, **named) if node.op == "call_method" else node.target(given, *rest, **named)

    def _known(self, value: Any) -> Any:
        """Return the arguments with None in place of numbers computed from shapes."""
        return fx.node.map_arg(value, lambda node: None)

    def _index(self, index: Any, index_dimensions: int) -> Any:
        if isinstance(index, (tuple, list)):
            return type(index)(self._index(one, index_dimensions) for one in index)
        if isinstance(index, slice):
            return slice(None) if nodes_in(index) else index
        return self._number_or_index(index, index_dimensions)

    def _number_or_index(self, index: Any, index_dimensions: int) -> Any:
        if not isinstance(index, fx.Node):
            return index
        if self.depends[index]:
            return torch.zeros((1,) * index_dimensions, dtype=torch.int64)
        return 0 if self._is_number(index) else self._attribute(index).to("cpu")


def _sizes(name: str, given: Any, rest: list[Any]) -> list[Any]:
    """Return the arguments of a rearrangement with a size in place of each unknown (None)."""
    if name in ("select", "narrow"):
        return [rest[0], *(index or 0 for index in rest[1:2]), *(length or 1 for length in rest[2:])]
    if name not in ("expand", "repeat", "tile", "view", "reshape"):
        return rest
    sizes = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if name == "expand":  # any size will do: entries are equal along an expanded dimension
        own = [1] * (len(sizes) - given.dim()) + list(given.shape)
        return [(1 if have == 1 else -1) if size is None else size for size, have in zip(sizes, own, strict=True)]
    return [(1 if name in ("repeat", "tile") else -1) if size is None else size for size in sizes]


def _layout(placed: list[Tensor], letters: str, groups: int) -> Layout | None:
    """Return a parameter's layout; `placed` holds, per dimension, its coordinates rearranged into the operand."""
    dimensions: dict[str, list[int]] = {letter: [] for letter in "moik"}
    for dimension, values in enumerate(placed):
        found = {letter for place, letter in enumerate(letters) if _varies(values, place)}
        if found in ({"m", "o"}, {"i", "k"}):
            found = found & {"o", "i"}
        if len(found) > 1:
            return None  # a dimension split over two roles
        dimensions[found.pop() if found else "m"].append(dimension)
    m, o, i, k = (tuple(dimensions[letter]) for letter in "moik")
    return Layout(m, o, i, k, groups) if i else None


def _varies(values: Tensor, place: int) -> bool:
    if values.shape[place] < 2 or values.stride(place) == 0:
        return False
    if values.untyped_storage().nbytes() < values.nbytes:  # an expanded view of distinct coordinates
        return True
    first, second = (values.narrow(place, start, values.shape[place] - 1) for start in (0, 1))
    return bool(((first != second) & (first >= 0) & (second >= 0)).any())
