"""Kinds of nodes in a traced forward: rearrangements of entries, reads of metadata, tensors made like another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from ..tracing.bytecode_scan import METADATA
from .linear_ops import name_of

INDEXING = frozenset(("getitem", "index_select", "select", "narrow"))
JOINING = frozenset("cat concat concatenate stack hstack vstack".split())
# These return the same entries in another dtype, on another device, in other memory or broadcast to another shape.
CASTS = frozenset("to type type_as float half double bfloat16 cpu cuda contiguous clone expand_as broadcast_to".split())
REARRANGING = (
    frozenset(
        """t T mT H mH transpose swapaxes swapdims permute movedim moveaxis adjoint view reshape view_as flatten
        unflatten squeeze unsqueeze expand repeat tile repeat_interleave chunk split tensor_split unbind flip roll
        rearrange""".split()
    )
    | INDEXING
    | JOINING
    | CASTS
)
# The results of these depend on the shape of an argument, not on its values.
_LIKE = frozenset(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full""".split()
)


def is_metadata(node: fx.Node) -> bool:
    """Return whether a node reads the shape, dtype or device of a tensor, not its values."""
    name = node.args[1] if node.target is getattr and len(node.args) > 1 else node.target
    return name in METADATA


def nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in nested arguments, including those in slices."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: found.append(node))
    return found


def is_rearranging(node: fx.Node) -> bool:
    """Return whether a node only rearranges entries or casts them."""
    if node.target is getattr:
        return node.args[1] in ("T", "mT", "H", "mH")
    return node.op in ("call_function", "call_method") and name_of(node) in REARRANGING


def rearranged_argument(node: fx.Node) -> Any:
    """Return the argument whose entries a node rearranges, None if there is none."""
    if node.args:
        return node.args[0]
    return next((node.kwargs[key] for key in ("input", "tensors", "self") if key in node.kwargs), None)


def read_nodes(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the input nodes whose values (not only shapes or dtypes) a node's values depend on."""
    if node.op not in ("call_function", "call_method"):
        yield from node.all_input_nodes
    elif is_metadata(node) or name_of(node) in _LIKE:
        return
    elif name_of(node) in CASTS:
        yield from nodes_in(rearranged_argument(node))
    else:
        yield from node.all_input_nodes
