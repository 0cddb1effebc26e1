"""Rules of recurrent layers: the same hidden units are removed from every layer and direction of a module.

torch.nn's LSTM, GRU, RNN and their cells are one operation each, with packed sequences too and on every device. Its
arguments are the input, the initial states and the weights, kwargs hold a Value for the hidden states of each layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import along, varying
from ..recording.ops import Op, Value
from ..recording.sequences import GATES
from .matmul import union_or_pin

# Index of the gate that makes a zero state nonzero.
_MAKING = {"lstm": 2, "gru": 2, "rnn_tanh": 0, "rnn_relu": 0}


@dataclass(frozen=True)
class _Cell:
    """One layer in one direction: its weights, the Value of its hidden states, the sizes of state and output."""

    from_input: Value
    from_state: Value
    biases: tuple[Value, ...]
    projection: Value | None
    state: Value
    hidden: int
    out: int


def _cells(op: Op) -> list[_Cell]:
    weights, within = op.args[2], op.kwargs["within"]
    count = len(weights) // len(within)
    cells = []
    for i, state in enumerate(within):
        into, back, *rest = weights[i * count : (i + 1) * count]
        biases = tuple(rest[:2]) if op.kwargs["biased"] else ()
        projection = rest[-1] if len(rest) > len(biases) else None
        hidden = state.shape[1]
        out = hidden if projection is None else projection.shape[0]
        cells.append(_Cell(into, back, biases, projection, state, hidden, out))
    return cells


def _couple_recurrent(coupling: Coupling, op: Op) -> None:
    value, states, _ = op.args
    numbers, gates = coupling.numbers, GATES[op.name]
    cells = _cells(op)
    directions = op.kwargs["directions"]
    units, outs = numbers.new(cells[0].hidden), numbers.new(cells[0].out)
    if cells[0].projection is None:
        numbers.union(units, outs)
    last = len(value.shape) - 1
    coupling.claim(value, [last])
    entering = _last(coupling, value)
    for i, cell in enumerate(cells):
        rows = units.repeat(gates)
        _union(coupling, cell.from_input, 0, rows)
        _union(coupling, cell.from_state, 0, rows)
        for bias in cell.biases:
            _union(coupling, bias, 0, rows)
        _union(coupling, cell.from_state, 1, outs)
        if cell.projection is not None:
            _union(coupling, cell.projection, 0, outs)
            _union(coupling, cell.projection, 1, units)
        given = entering if i < directions else outs.repeat(directions)
        union_or_pin(coupling, given, coupling.along(cell.from_input, 1), cell.from_input.shape[1])
        coupling.set(cell.state, [along(units, 1, 2)])
        _count(coupling, op, cell)
    for state, own in zip(states, (outs, units), strict=False):
        coupling.claim(state, [len(state.shape) - 1])
        union_or_pin(coupling, _last(coupling, state), own, len(own))
    output, *ends = op.results
    coupling.set(output, [along(outs.repeat(directions), last, last + 1)])
    for end, own in zip(ends, (outs, units), strict=False):
        coupling.set(end, [along(own, len(end.shape) - 1, len(end.shape))])


def _union(coupling: Coupling, value: Value, dim: int, numbers: Tensor) -> None:
    """Join one dimension of a weight with channel numbers; the first dimension produces them."""
    found = coupling.along(value, dim)
    union_or_pin(coupling, found, numbers, len(numbers))
    coupling.produced += [found] if dim == 0 and found is not None else []


def _last(coupling: Coupling, value: Value) -> Tensor | None:
    """Return the channel numbers along the last dimension of a tensor, or None; pin those along other dimensions."""
    last = len(value.shape) - 1
    for axis in coupling.of(value):
        if varying(axis) != (last,):
            coupling.numbers.pin(axis)
    return coupling.along(value, last)


def _count(coupling: Coupling, op: Op, cell: _Cell) -> None:
    positions = math.prod(op.args[0].shape[:-1])
    for weight in (cell.from_input, cell.from_state, cell.projection):
        if weight is not None:
            coupling.count(op, coupling.of(weight), positions * math.prod(weight.shape))


def _flow_recurrent(live: Liveness, op: Op) -> None:
    value, states, _ = op.args
    directions = op.kwargs["directions"]
    first = [_features(live, state) for state in states]
    entering = _features(live, value)
    ends: list[Tensor] = []
    within: list[Tensor] = []
    cells = _cells(op)
    for i, cell in enumerate(cells):
        _flow_cell(live, op.name, cell, entering, first)
        within.append(live.of(cell.state).reshape(-1))
        ends.append(_out(live, cell, within[-1]))
        if (i + 1) % directions == 0:
            entering = torch.cat(ends[-directions:])
    results = [entering, sum(ends[1:], ends[0]), sum(within[1:], within[0])]
    for result, flags in zip(op.results, results, strict=False):
        live.set(result, indicator(along(flags, len(result.shape) - 1, len(result.shape))))


def _entries(live: Liveness, weight: Value) -> Tensor:
    """Return the flags of all entries of a weight."""
    return live.of(weight).expand(weight.shape)


def _features(live: Liveness, value: Value) -> Tensor:
    """Return the flags along the last dimension, float32 [features]."""
    flags = live.of(value)
    return flags.reshape(-1, flags.shape[-1]).sum(0).expand(value.shape[-1])


def _out(live: Liveness, cell: _Cell, state: Tensor) -> Tensor:
    """Return the flags of a layer's output; it also reads the states that a state influences in later time steps."""
    reached = state * 1 + (_reach(live, cell, slice(None)) @ state) * state.detach()
    return indicator(reached if cell.projection is None else _entries(live, cell.projection) @ reached)


def _flow_cell(live: Liveness, name: str, cell: _Cell, entering: Tensor, first: list[Tensor]) -> None:
    gates, making = GATES[name], _MAKING[name]
    rows = slice(making * cell.hidden, (making + 1) * cell.hidden)
    before = _entries(live, cell.from_input) @ entering + _entries(live, cell.from_state) @ first[0]
    for bias in cell.biases:
        before = before + live.of(bias)
    made = before[rows] + first[-1]
    state = indicator(_reach(live, cell, rows) @ made)
    # The gates of all states that a state influences read it; its own gates do not make a zero state nonzero.
    read = _reach(live, cell, slice(None)) @ before.reshape(gates, -1).sum(0)
    live.set(cell.state, indicator(state * (1 + read)).reshape(1, -1))


def _reach(live: Liveness, cell: _Cell, rows: slice) -> Tensor:
    """Return which states influence which in the same or later time steps: float 0/1 [to, from]."""
    with torch.no_grad():
        links = _entries(live, cell.from_state)
        links = links if cell.projection is None else links @ _entries(live, cell.projection)
        links = (links[rows].reshape(-1, cell.hidden, cell.hidden).sum(0) > 0).to(torch.float32)
        reach = ((links + torch.eye(cell.hidden)) > 0).to(torch.float32)
        for _ in range(max(1, math.ceil(math.log2(max(2, cell.hidden))))):
            reach = ((reach @ reach) > 0).to(torch.float32)
    return reach


def _couple_packed(coupling: Coupling, op: Op) -> None:
    """Couple padded and packed sequences, whose last dimension holds the features."""
    value, result = op.args[0], op.results[0]
    left = _last(coupling, value)
    for other in op.inputs[1:]:
        coupling.pin(other)
    coupling.set(result, [] if left is None else [along(left, len(result.shape) - 1, len(result.shape))])
    for value in op.results[1:]:
        coupling.set(value, [])


def _flow_packed(live: Liveness, op: Op) -> None:
    result = op.results[0]
    read = sum((live.of(other).sum() for other in op.inputs[1:]), torch.zeros(())) + 1
    padding = op.args[3] if op.name == "_pad_packed_sequence" else 0
    flags = _features(live, op.args[0]) * read + float(bool(padding))
    live.set(result, indicator(along(flags, len(result.shape) - 1, len(result.shape))))
    for value in op.results[1:]:
        live.set(value, indicator(torch.ones([1] * len(value.shape)) * read))


RECURRENT = {
    **dict.fromkeys(GATES, (_couple_recurrent, _flow_recurrent)),
    **dict.fromkeys(("_pack_padded_sequence", "_pad_packed_sequence"), (_couple_packed, _flow_packed)),
}
