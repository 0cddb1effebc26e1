"""Recurrent layers and cells of torch.nn as one operation each, with a Value for the hidden states of every layer."""

from __future__ import annotations

from typing import Any

from .ops import Op, Value

# Operation -> number of gates of its cell.
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def sequence_op(name: str, args: tuple[Any, ...], results: tuple[Value, ...], module: str) -> Op:
    """Return the Op for a call of torch's function `name`; `args` has Values in place of tensors."""
    if name.removesuffix("_cell") not in GATES:
        return Op(name, None, args, {}, results, module)
    if name.endswith("_cell"):  # a layer for one time step
        weights = [weight for weight in args[2:] if weight is not None]
        return _recurrent(
            name.removesuffix("_cell"), args[0], args[1], weights, (len(weights) > 2, 1, 1), results, module
        )
    packed = isinstance(args[1], Value) and isinstance(args[3], (list, tuple))
    value, states, weights, biased = (args[0], *args[2:5]) if packed else args[:4]
    bidirectional = args[8] if packed else args[7]
    layers = args[5] if packed else args[4]
    return _recurrent(name, value, states, weights, (biased, layers, 1 + bidirectional), results, module)


def _recurrent(
    name: str,
    value: Value,
    states: Any,
    weights: Any,
    form: tuple[bool, int, int],
    results: tuple[Value, ...],
    module: str,
) -> Op:
    """Return the Op of a recurrent function; `form` is (whether it has biases, number of layers, of directions)."""
    biased, layers, directions = form
    hidden = weights[0].shape[0] // GATES[name]
    within = [Value((1, hidden)) for _ in range(layers * directions)]
    given = tuple(states) if isinstance(states, (list, tuple)) else (states,)
    kwargs = {"biased": biased, "directions": directions, "within": within}
    return Op(name, None, (value, given, tuple(weights)), kwargs, results, module)
