"""Modules whose channels stay: those that branch on values or the gradient mode, and nn.MultiheadAttention's heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..module_walk import full_name
from ..recording.ops import VALUES, Recording, Value

if TYPE_CHECKING:
    from .coupling import Coupling

# The weights of nn.MultiheadAttention whose rows are heads.
_ROWS_OF_HEADS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def pin_branch(coupling: Coupling, recording: Recording, path: str, given: Sequence[Value], asked: str) -> None:
    """Pin all channels that the module at `path` meets, since it branches on `asked`; `given` are its inputs."""
    otherwise = "with others" if asked == VALUES else "otherwise"
    why = f"{path or 'the model'}: its forward asks {asked}, and may do something else {otherwise}"
    coupling.numbers.cause = why
    inside = [op for op in recording.ops if not path or op.module == path or op.module.startswith(f"{path}.")]
    met = dict.fromkeys([*given, *(value for op in inside for value in (*op.inputs, *op.results))])
    for value in met:
        if value in coupling.axes or value.constant is None:
            coupling.pin(value)
    coupling.barriers[why] = None
    coupling.barred.add(why)


def pin_heads(coupling: Coupling, recording: Recording, path: str) -> None:
    """Pin the heads of the nn.MultiheadAttention at `path`, the entries of each head, and the inputs of its queries."""
    own = [recording.state.get(full_name(path, name)) for name in _ROWS_OF_HEADS]
    rows = [value for value in own if value in coupling.axes]
    why = f"{path or 'the model'}: nn.MultiheadAttention takes no fewer heads: together they are as wide as its input"
    coupling.numbers.cause = why
    for value in rows:
        coupling.pin(value, [0, 1] if value in own[:2] else [0])  # queries are compared with its own width
    if rows:
        coupling.barriers[why] = None
        coupling.barred.add(why)
