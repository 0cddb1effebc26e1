"""Bias sinks: layers that can absorb a constant input channel into their bias without changing their output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..module_walk import full_name
from ..recording.ops import Op, Recording, Value


@dataclass(frozen=True, eq=False)
class BiasSink:
    """A weighted sum over the channels of `value` along `dim`: its operands, and the name of its bias.

    The bias may not exist yet.
    """

    value: Value
    dim: int
    weight: Value
    bias: str


def bias_sinks(recording: Recording) -> dict[Op, BiasSink]:
    """Return {operation: BiasSink} of the operations that can absorb constant channels into a bias.

    They are linear layers and convolutions without padding, transposition or groups; with padding, a constant channel
    would differ at the border. Weight and bias must be tensors of the model that nothing else reads, since another
    reader would see the changed bias.
    """
    readers = Counter(value for op in recording.ops for value in op.inputs) + Counter(recording.outputs)
    made = {result: op for op in recording.ops for result in op.results}
    found = {}
    for op in recording.ops:
        sink = _convolution(op, recording) if op.name == "convolution" else _product(op, recording, made)
        if sink is None or sink.value.constant is not None or sink.bias in recording.fixed_biases:
            continue
        chain = [sink.weight, *(value for value in op.inputs if value.constant is not None)]
        if sink.bias in recording.state:
            chain.append(recording.state[sink.bias])
        if all(readers[value] == 1 for value in chain):
            found[op] = sink
    return found


def _convolution(op: Op, recording: Recording) -> BiasSink | None:
    value, weight, bias, _, padding, _, transposed, _, groups = op.args
    if transposed or groups != 1 or any(padding):
        return None
    name = _bias(op, recording, weight, bias)
    return None if name is None else BiasSink(value, 1, weight, name)


def _product(op: Op, recording: Recording, made: dict[Value, Op]) -> BiasSink | None:
    """Match activations times a transposed weight, the form in which linear layers are recorded."""
    if op.name not in ("mm", "addmm") or op.kwargs:
        return None
    *added, value, factor = op.args
    turned = made.get(factor)
    if turned is None or not (turned.name == "t" or (turned.name == "transpose" and turned.args[1] != turned.args[2])):
        return None
    weight = turned.args[0]
    name = _bias(op, recording, weight, added[0] if added else None)
    return None if name is None else BiasSink(value, 1, weight, name)


def _bias(op: Op, recording: Recording, weight: Value, bias: Value | None) -> str | None:
    """Return the name of the bias that an operation adds or that its layer could get, None if it cannot have one."""
    if not weight.names:
        return None
    if bias is not None:
        return bias.names[0] if bias.names and bias.shape == weight.shape[:1] else None
    for name in weight.names:
        path, _, own = name.rpartition(".")
        wanted = full_name(path, "bias")
        if own == "weight" and op.module == path and wanted in recording.biases:
            return wanted
    return None
