"""Why channels stay: the operation that keeps them, and the module that ran it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..recording.ops import Op, Value
from .union_find import PINNED

if TYPE_CHECKING:
    from .coupling import Coupling

OUTPUTS = "the outputs"
IN_OBJECTS = "an object in the outputs holds them, as a cache of keys and values (of use_cache=True) does"
_OTHERWISE = "zeros in them do not make their channels zero"
_COUNTING = (
    "mean var var_mean std std_mean amax amin max min logsumexp cumsum cumprod _softmax _log_softmax _safe_softmax "
    "native_layer_norm _fused_rms_norm linalg_vector_norm norm"
).split()
_WORDS = {
    **dict.fromkeys(_COUNTING, "depends on how many there are"),
    **dict.fromkeys(("cat", "stack", "constant_pad_nd"), "puts them beside entries that stay"),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand", "repeat"), "ties them to entries that stay"),
    **dict.fromkeys(("add", "sub", "mul", "div", "where"), "joins them with entries that stay"),
}


def reasons(coupling: Coupling, ids: np.ndarray[Any, Any], spoiled: Callable[[], Mapping[int, Op]]) -> tuple[str, ...]:
    """Return a line for each cause, other than being an output, that keeps all channels of a weight.

    For a weight with removable channels, lines say how many others stay because their zeros become other values.

    `ids` are the groups of the channel numbers (-1 = never removed). `spoiled`, called only if needed, returns for a
    number the first operation that turns its zeros into other values.
    """
    wholly = _produced(coupling, ids)
    partly = _partly(coupling, ids)
    if not wholly and not partly:
        return ()
    first, causes = coupling.numbers.why_pinned()
    roots = coupling.numbers.find()
    found: dict[str, list[str]] = {}
    parts: dict[str, dict[str, list[int]]] = {}
    for numbers, name in wholly:
        fixing = first[numbers][first[numbers] >= 0]
        cause = causes[fixing.min()] if len(fixing) else None
        if cause is OUTPUTS or cause in coupling.barred:
            continue
        if cause is not None:
            what = _sentence(cause, _WORDS.get(cause.name, "needs all of them") if isinstance(cause, Op) else "")
        elif len(np.unique(roots[numbers])) == 1:
            what = "all channels can only go together"
        else:
            ops = spoiled()
            op = next((ops[n] for n in roots[numbers].tolist() if n in ops), None)
            what = _OTHERWISE if op is None else _sentence(op, "makes other values of zeros")
        found.setdefault(what, []).append(name)
    for numbers, name, count in partly:
        for n in numbers.tolist():
            op = spoiled().get(roots[n])
            what = _OTHERWISE if op is None else _sentence(op, "makes other values of zeros")
            parts.setdefault(what, {}).setdefault(f"of {count} units of {name}", []).append(n)
    lines = [f"{what}: {_names(names)} stay" for what, names in found.items()]
    for what, sides in parts.items():
        lines.append(f"{what}: {_names([f'{len(numbers)} {side}' for side, numbers in sides.items()])} stay")
    return tuple(lines)


def _partly(coupling: Coupling, ids: np.ndarray[Any, Any]) -> list[tuple[np.ndarray[Any, Any], str, int]]:
    """Return (numbers that stay, name, size) of each weight that has both removable channels and others that stay."""
    roots = coupling.numbers.find()
    found = []
    for value, numbers in _making(coupling):
        stay = numbers[(ids[numbers] < 0) & (roots[numbers] != PINNED)]
        if len(stay) and len(stay) < len(numbers) and (ids[numbers] >= 0).any():
            found.append((stay, value.names[0], len(numbers)))
    return found


def _produced(coupling: Coupling, ids: np.ndarray[Any, Any]) -> list[tuple[np.ndarray[Any, Any], str]]:
    """Return (channel numbers, name) of each weight without removable channels."""
    found = _making(coupling)
    able = {value for value, numbers in found if (ids[numbers] >= 0).any()}
    last = {value: numbers for value, numbers in found if value not in able}  # a table's last dimension: features
    return [(numbers, value.names[0]) for value, numbers in last.items()]


def _making(coupling: Coupling) -> list[tuple[Value, np.ndarray[Any, Any]]]:
    """Return (parameter, channel numbers) of each parameter of two or more dimensions that produces channels."""
    marked = np.zeros(coupling.numbers.count, dtype=bool)
    for axis in coupling.produced:
        marked[axis.numpy().reshape(-1)] = True
    return [
        (value, np.arange(first, end))
        for first, end, value, _ in coupling.ranges
        if value.trainable and len(value.shape) > 1 and marked[first:end].any()
    ]


def _sentence(cause: Any, what: str) -> str:
    return f"{cause.module or 'the model'}: operation '{cause.name}' {what}" if isinstance(cause, Op) else str(cause)


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def spoiling(ops: tuple[Op, ...], carries: Callable[[Value], set[int]]) -> dict[int, Op]:
    """Return {channel number: first operation with a result, but no input, in which it is alive}."""
    found: dict[int, Op] = {}
    for op in ops:
        after = {number for value in op.results for number in carries(value)}
        if after - found.keys():
            before = {number for value in op.inputs for number in carries(value)}
            found |= dict.fromkeys(after - before - found.keys(), op)
    return found
