"""What the nodes of a traced forward depend on, and which only arrange the entries of parameters anew.

Such an operand of a product is a weight that is masked where it is stored. Which of the parameter's dimensions end up
where in the operand is found by arranging coordinates in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..masks import Layout
from ..tracing.bytecode_scan import METADATA
from .linear_ops import Operand, name_of, roles

_INDEXING = frozenset(("getitem", "index_select", "select", "narrow"))
_JOINING = frozenset("cat concat concatenate stack hstack vstack".split())
# They give the very entries, in another type or place.
CASTS = frozenset("to type type_as float half double bfloat16 cpu cuda contiguous clone expand_as broadcast_to".split())
ARRANGING = (
    frozenset(
        """t T mT H mH transpose swapaxes swapdims permute movedim moveaxis adjoint view reshape view_as flatten
        unflatten squeeze unsqueeze expand repeat tile repeat_interleave chunk split tensor_split unbind flip roll
        rearrange""".split()
    )
    | _INDEXING
    | _JOINING
    | CASTS
)
# What they return has the shape of an argument, not its values.
_LIKE = frozenset(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full""".split()
)
_MOST_INDEX_DIMENSIONS = 3


def is_metadata(node: fx.Node) -> bool:
    """Whether a node reads the shape or the like of a tensor, not its values."""
    name = node.args[1] if node.target is getattr and len(node.args) > 1 else node.target
    return name in METADATA


def nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in arguments of any make, slices included."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: found.append(node))
    return found


class Arrangements:
    """What is known of every node of one graph.

    `depends`: whether its values depend on an input; `arranged`: the sources whose entries it holds, if it only
    arranges those anew; `embeddings`: the tables of embeddings; `tables`: sources -> why they are tables to be looked
    up and no weights.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, sources: Mapping[fx.Node, str]) -> None:
        self.module, self.sources = module, sources
        self.depends: dict[fx.Node, bool] = {}
        self.arranged: dict[fx.Node, frozenset[fx.Node]] = {}
        self.tables: dict[fx.Node, str] = {}
        self.embeddings: list[fx.Node] = []  # the tables of embeddings, arranged anew or as they are
        self._constant: dict[fx.Node, bool] = {}  # no parameter and no input is in it
        for node in graph.nodes:
            if node.target in (F.embedding, F.embedding_bag):
                self.embeddings += nodes_in(node.kwargs.get("weight", node.args[1:2]))
            self.depends[node] = node.op == "placeholder" or (
                node.op != "get_attr" and any(self.depends[other] for other in _read(node))
            )
            self._constant[node] = (
                node not in sources and not self.depends[node] and all(self._constant[n] for n in _read(node))
            )
            self.arranged[node] = frozenset([node]) if node in sources else self._arranged(node)

    def _arranged(self, node: fx.Node) -> frozenset[fx.Node]:
        if not is_arranging(node):
            return frozenset()
        parts = nodes_in(_arranged_argument(node))
        if not parts or not all(self.arranged[part] or self._constant[part] for part in parts):
            return frozenset()
        found = frozenset(source for part in parts for source in self.arranged[part])
        reason = self._looked_up(node) if found and name_of(node) in ("getitem", "index_select") else ""
        if reason:
            self.tables |= dict.fromkeys(found, reason)
            return frozenset()
        return found

    def _looked_up(self, node: fx.Node) -> str:
        """Return why an index makes a table of what it is put on, or nothing."""
        index = node.args[-1] if node.args[1:] else node.kwargs.get("index")
        for one in index if isinstance(index, (tuple, list)) else [index]:
            if not isinstance(one, fx.Node):
                continue
            if self.depends[one]:
                # An input chooses among experts, which are matrices, or among vectors, as of an embedding.
                if self._dimensions(_arranged_argument(node)) - 1 < 2:
                    return "looked up by an input, as an embedding is"
            elif not self._is_number(one) and not (one.op == "get_attr" and self._attribute(one).dim() == 1):
                return "a table that is looked up by position"
        return ""

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a node is a number made of shapes."""
        if is_metadata(node):
            return True
        own = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
        return node.op == "call_function" and own and all(map(self._is_number, node.all_input_nodes))

    def _attribute(self, node: fx.Node) -> Tensor:
        value: Any = self.module
        for step in str(node.target).split("."):
            value = getattr(value, step)
        return value  # type: ignore[no-any-return]

    def _dimensions(self, node: Any) -> int:
        (source, *_) = self.arranged[node]
        arranged: Tensor = self.coordinates(node, source, self._attribute(source).shape, 0, 0)
        return arranged.dim()

    def bases(self, node: fx.Node) -> list[fx.Node]:
        """Return what a node only arranges anew, the first of all first, and the node itself last."""
        found = [node]
        while is_arranging(found[0]) and isinstance(inner := _arranged_argument(found[0]), fx.Node):
            found.insert(0, inner)
        return found

    def layout(self, operand: Operand, source: fx.Node, shape: torch.Size) -> Layout | None:
        """Return the layout of what is arranged from `source`, of that shape, into an operand; None if it has none."""
        for index_dimensions in range(_MOST_INDEX_DIMENSIONS + 1):
            try:
                placed = [
                    self.coordinates(operand.node, source, shape, dimension, index_dimensions)
                    for dimension in range(len(shape))
                ]
            except Exception:  # noqa: BLE001 - whatever a size that is not known yet leads to
                return None
            letters = roles(operand.pattern, placed[0].dim())
            if letters is not None:
                return _layout(placed, letters, operand.groups)
        return None

    def coordinates(self, node: Any, source: fx.Node, shape: torch.Size, dimension: int, index_dimensions: int) -> Any:
        """Return `node` with the entries of `source` replaced by their coordinates in one dimension, others by -1.

        `index_dimensions` is how many dimensions an index has that depends on an input; it chooses the first entry.
        """
        if node is source:
            sizes = [1] * len(shape)
            sizes[dimension] = -1
            return torch.arange(shape[dimension], dtype=torch.int32).reshape(sizes).expand(shape)
        if node.op == "get_attr":
            return torch.full((), -1, dtype=torch.int32).expand(self._attribute(node).shape)
        if not is_arranging(node):
            raise ValueError(f"{node} is computed: its shape is not known")
        name = name_of(node)

        given = _arranged_argument(node)
        if name in _JOINING:  # the shapes of what is computed are not known
            given = [part for part in given if part.op == "get_attr" or self.arranged[part] or is_arranging(part)]
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
        """Return arguments with None for numbers that depend on shapes."""
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


def is_arranging(node: fx.Node) -> bool:
    """Whether a node only arranges entries anew, or gives them in another type."""
    if node.target is getattr:
        return node.args[1] in ("T", "mT", "H", "mH")
    return node.op in ("call_function", "call_method") and name_of(node) in ARRANGING


def _arranged_argument(node: fx.Node) -> Any:
    if node.args:
        return node.args[0]
    return next((node.kwargs[key] for key in ("input", "tensors", "self") if key in node.kwargs), None)


def _read(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes whose values a node's values depend on."""
    if node.op not in ("call_function", "call_method"):
        yield from node.all_input_nodes
    elif is_metadata(node) or name_of(node) in _LIKE:
        return
    elif name_of(node) in CASTS:
        yield from nodes_in(_arranged_argument(node))
    else:
        yield from node.all_input_nodes


def _sizes(name: str, given: Any, rest: list[Any]) -> list[Any]:
    """Return the arguments of an arrangement with a size in the place of those that are not known."""
    if name in ("select", "narrow"):
        return [rest[0], *(index or 0 for index in rest[1:2]), *(length or 1 for length in rest[2:])]
    if name not in ("expand", "repeat", "tile", "view", "reshape"):
        return rest
    sizes = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if name == "expand":  # along such a dimension the entries are the same
        own = [1] * (len(sizes) - given.dim()) + list(given.shape)
        return [(1 if have == 1 else -1) if size is None else size for size, have in zip(sizes, own, strict=True)]
    return [(1 if name in ("repeat", "tile") else -1) if size is None else size for size in sizes]


def _layout(placed: list[Tensor], letters: str, groups: int) -> Layout | None:
    """Return the layout of a parameter whose coordinates lie in an operand as `placed` says, dimension by dimension."""
    dimensions: dict[str, list[int]] = {letter: [] for letter in "moik"}
    for dimension, values in enumerate(placed):
        found = {letter for place, letter in enumerate(letters) if _varies(values, place)}
        if found in ({"m", "o"}, {"i", "k"}):
            found = found & {"o", "i"}
        if len(found) > 1:
            return None  # it is cut in two that are not for the same
        dimensions[found.pop() if found else "m"].append(dimension)
    m, o, i, k = (tuple(dimensions[letter]) for letter in "moik")
    return Layout(m, o, i, k, groups) if i else None


def _varies(values: Tensor, place: int) -> bool:
    if values.shape[place] < 2 or values.stride(place) == 0:
        return False
    if values.untyped_storage().nbytes() < values.nbytes:  # a view of the coordinates, expanded along the others
        return True
    first, second = (values.narrow(place, start, values.shape[place] - 1) for start in (0, 1))
    return bool(((first != second) & (first >= 0) & (second >= 0)).any())
