"""Tables of relative positions, which products use like weights but which are not weights.

`rearranged` finds tables that are indexed. Other tables are recognised by the operations after the product, which skew
relative to absolute positions by padding a column and reshaping (Huang et al. 2019, Music Transformer, section 3.4.1),
or by the words in the parameter's name.
"""

from __future__ import annotations

import re

from torch import fx

from .linear_ops import name_of

_WORDS = frozenset("pos position positions positional posemb relpos rel relative rpe rpb".split())
_OF_WEIGHTS = frozenset("proj projection weight weights kernel w".split())
_RESHAPING = frozenset("view reshape flatten unflatten".split())


def is_table(path: str, product: fx.Node) -> bool:
    """Return whether the parameter at `path`, an operand of `product`, is a position table."""
    return _is_skewed(product) or _is_called_so(path)


def _is_called_so(path: str) -> bool:
    name = next((step for step in reversed(path.split(".")) if not step.isdigit()), "")
    words = set(re.findall("[a-z]+", re.sub("([a-z0-9])([A-Z])", r"\1_\2", name).lower()))
    return bool(words & _WORDS) and not words & _OF_WEIGHTS


def _is_skewed(product: fx.Node) -> bool:
    """Return whether a product's result is padded by one column and then reshaped."""
    waiting = [*product.users]
    while waiting:
        node = waiting.pop()
        if name_of(node) in _RESHAPING:
            waiting += node.users
        elif name_of(node) == "pad" and _by_one_column(node):
            return any(name_of(user) in _RESHAPING for user in node.users)
    return False


def _by_one_column(node: fx.Node) -> bool:
    sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    return isinstance(sizes, (tuple, list)) and tuple(sizes) in ((0, 1), (1, 0))
