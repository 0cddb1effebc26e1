"""Linear operations: which operands may be weights, and the role of each of their dimensions.

A pattern has one letter per dimension: `o` outputs, `i` inputs (contracted), `k` kernel positions, `m` a batch of
matrices. `m*` stands for any number of `m`; `+0,2` for `i` at dimensions 0 and 2 and `o` elsewhere.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import fx

from ... import ops


class Operand(NamedTuple):
    """An operand that may be a weight: its node, the pattern of its roles, the other operands.

    `groups` is that of a transposed convolution, else 1.
    """

    node: fx.Node
    pattern: str
    others: tuple[Any, ...]
    groups: int = 1


def roles(pattern: str, dimensions: int) -> str | None:
    """Return the roles of `dimensions` dimensions, one letter each; None if the pattern does not fit."""
    if pattern.startswith("+"):
        summed = {int(dimension) % dimensions for dimension in pattern[1:].split(",")}
        return "".join("i" if dimension in summed else "o" for dimension in range(dimensions))
    before, star, behind = pattern.partition("*")
    if not star:
        return pattern if len(pattern) == dimensions else None
    before, repeated = before[:-1], before[-1]
    missing = dimensions - len(before) - len(behind)
    if missing < 0:
        return "i" if dimensions == 1 else None
    return before + repeated * missing + behind


def name_of(node: fx.Node) -> str:
    """Return the name of the function, method or operator that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def weight_argument(node: fx.Node) -> Any:
    """Return the weight of a conv or linear node."""
    return node.args[1] if len(node.args) > 1 else node.kwargs["weight"]


def is_conv_or_linear(node: fx.Node) -> bool:
    """Return whether a node is an operation that has a masked form."""
    return node.op == "call_function" and node.target in ops.MASKED


def operands(node: fx.Node) -> list[Operand]:
    """Return the operands of a node that may be weights; [] if it is not a conv, linear or matrix product."""
    if is_conv_or_linear(node):
        weight = weight_argument(node)
        given = node.args[0] if node.args else node.kwargs["input"]
        return [_of_layer(node, weight, given)] if isinstance(weight, fx.Node) else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = name_of(node).strip("_")
    if name == "einsum":
        found = _of_einsum(node)
    elif name == "tensordot":
        found = _of_tensordot(node)
    elif name in _CHAINS:
        found = _of_chain(node)
    elif name in _PRODUCTS:
        found = _of_product(node, *_PRODUCTS[name])
    else:
        found = []
    return [operand for operand in found if isinstance(operand.node, fx.Node)]


def _of_layer(node: fx.Node, weight: fx.Node, given: Any) -> Operand:
    name = name_of(node)
    kernel = "k" * int(name[-2]) if name.startswith("conv") else ""
    if not name.startswith("conv_transpose"):
        return Operand(weight, f"oi{kernel}", (given,))
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return Operand(weight, f"io{kernel}", (given,), groups if isinstance(groups, int) else 1)


# Name of a product, without outer underscores -> its operands by position and by keyword, and the pattern of each as a
# weight.
_PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("matmul", "imatmul"), ((0, 1), ("input", "other"), ("m*oi", "m*io"))),
    "rmatmul": ((1, 0), ("other", "self"), ("m*oi", "m*io")),
    "mm": ((0, 1), ("input", "mat2"), ("oi", "io")),
    "bmm": ((0, 1), ("input", "mat2"), ("moi", "mio")),
    "mv": ((0, 1), ("input", "vec"), ("oi", "i")),
    "addmm": ((1, 2), ("mat1", "mat2"), ("oi", "io")),
    "addmv": ((1, 2), ("mat", "vec"), ("oi", "i")),
    **dict.fromkeys(("baddbmm", "addbmm"), ((1, 2), ("batch1", "batch2"), ("moi", "mio"))),
    "inner": ((0, 1), ("input", "other"), ("o*i", "o*i")),
    "bilinear": ((0, 1, 2), ("input1", "input2", "weight"), ("", "", "oii")),
    "grouped_mm": ((0, 1), ("mat_a", "mat_b"), ("m*oi", "m*io")),
}


_CHAINS = ("linalg_multi_dot", "multi_dot", "chain_matmul")  # products of any number of matrices
PRODUCTS = (*_PRODUCTS, *_CHAINS, "einsum", "tensordot")  # the names of matrix products


def _of_product(
    node: fx.Node, positions: tuple[int, ...], keywords: tuple[str, ...], patterns: tuple[str, ...]
) -> list[Operand]:
    given = [
        node.args[position] if position < len(node.args) else node.kwargs.get(keyword)
        for position, keyword in zip(positions, keywords, strict=True)
    ]
    found = []
    for index, (value, pattern) in enumerate(zip(given, patterns, strict=True)):
        others = tuple(other for place, other in enumerate(given) if place != index)
        if pattern:
            found.append(Operand(value, pattern, others))  # type: ignore[arg-type]
    return found


def _of_chain(node: fx.Node) -> list[Operand]:
    """Return the operands of a chain of products; the first is a weight by rows, the others by columns."""
    values: list[Any] = [*node.args, *node.kwargs.values()]
    values = [*values[0]] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values
    patterns = ["oi", *["io"] * (len(values) - 1)]
    return [
        Operand(value, pattern, tuple(other for other in values if other is not value))
        for value, pattern in zip(values, patterns, strict=True)
    ]


def _of_tensordot(node: fx.Node) -> list[Operand]:
    given = [*node.args, *(node.kwargs[key] for key in ("a", "b") if key in node.kwargs)]
    left, right, rest = given[0], given[1], given[2:]
    dims = rest[0] if rest else node.kwargs.get("dims", 2)
    if isinstance(dims, int):
        summed = "i" * dims
        return [Operand(left, f"o*{summed}", (right,)), Operand(right, f"{summed}o*", (left,))]  # type: ignore[arg-type]
    if not isinstance(dims, (tuple, list)) or not all(isinstance(one, (tuple, list)) for one in dims):
        return []
    found = []
    for mine, value, other in ((dims[0], left, right), (dims[1], right, left)):
        found.append(Operand(value, "+" + ",".join(map(str, mine)), (other,)))  # type: ignore[arg-type]
    return found


def _of_einsum(node: fx.Node) -> list[Operand]:
    equation, values = _equation(node)
    terms, _, result = equation.partition("->")
    labels = [_labels(term) for term in terms.split(",")]
    if len(labels) != len(values):
        return []
    every = [label for term in labels for label in term]
    kept = (
        _labels(result) if "->" in equation else [label for label in every if every.count(label) == 1 or label == "..."]
    )
    found = []
    for index, (value, term) in enumerate(zip(values, labels, strict=True)):
        others = [label for place, other in enumerate(labels) if place != index for label in other]
        if set(term) & set(others) <= set(kept):
            continue  # no dimension is contracted
        letters = ["m*" if label == "..." else _letter(label in kept, label in others) for label in term]
        rest = tuple(other for place, other in enumerate(values) if place != index)
        found.append(Operand(value, "".join(letters), rest))
    return found


def _letter(kept: bool, shared: bool) -> str:
    return ("m" if shared else "o") if kept else "i"


def _equation(node: fx.Node) -> tuple[str, list[Any]]:
    """Return the equation and operands of an einsum; torch takes the equation first, other libraries last."""
    *first, last = [*node.args, *node.kwargs.values()]
    if first and isinstance(first[0], str):
        values = [*first[1:], last]
        if len(values) == 1 and isinstance(last, (tuple, list)):
            values = [*last]
        return first[0].replace(" ", ""), values
    return (last, first) if isinstance(last, str) else ("", [])


def _labels(term: str) -> list[str]:
    """Return the labels of a term's dimensions: words if the term contains spaces, else letters."""
    term = term.strip()
    return term.split() if " " in term else re.findall(r"\.\.\.|.", term)
