"""Which layers can take a channel that holds one value whatever the input into their bias, exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..recording.ops import Step, Tape, Value


@dataclass(frozen=True, eq=False)
class Foldable:
    """A step that adds up the channels of `value` along `dim`, weighted, and a bias, which may not be there yet."""

    value: Value
    dim: int
    weight: Value
    bias: str


def foldable_steps(tape: Tape) -> dict[Step, Foldable]:
    """Return the steps of a pass that constant channels may be folded into, with what is needed to do it.

    They are linear layers and plain convolutions without padding, at whose border no channel is other than elsewhere.
    Weight and bias have to be the model's own, and read nowhere else: another reader would see the changed bias.
    """
    readers = Counter(value for step in tape.steps for value in step.inputs) + Counter(tape.outputs)
    made = {result: step for step in tape.steps for result in step.results}
    found = {}
    for step in tape.steps:
        fold = _convolution(step, tape) if step.name == "convolution" else _product(step, tape, made)
        if fold is None or fold.value.constant is not None or fold.bias in tape.held_biases:
            continue
        chain = [fold.weight, *(value for value in step.inputs if value.constant is not None)]
        if fold.bias in tape.state:
            chain.append(tape.state[fold.bias])
        if all(readers[value] == 1 for value in chain):
            found[step] = fold
    return found


def _convolution(step: Step, tape: Tape) -> Foldable | None:
    value, weight, bias, _, padding, _, transposed, _, groups = step.args
    if transposed or groups != 1 or any(padding):
        return None
    name = _bias(step, tape, weight, bias)
    return None if name is None else Foldable(value, 1, weight, name)


def _product(step: Step, tape: Tape, made: dict[Value, Step]) -> Foldable | None:
    """Activations times a weight that was transposed, as linear layers do."""
    if step.name not in ("mm", "addmm") or step.kwargs:
        return None
    *added, value, factor = step.args
    turned = made.get(factor)
    if turned is None or not (turned.name == "t" or (turned.name == "transpose" and turned.args[1] != turned.args[2])):
        return None
    weight = turned.args[0]
    name = _bias(step, tape, weight, added[0] if added else None)
    return None if name is None else Foldable(value, 1, weight, name)


def _bias(step: Step, tape: Tape, weight: Value, bias: Value | None) -> str | None:
    """Return the name of the bias that a step adds, or would add if its layer had one."""
    if not weight.names:
        return None
    if bias is not None:
        return bias.names[0] if bias.names and bias.shape == weight.shape[:1] else None
    for name in weight.names:
        path, _, own = name.rpartition(".")
        wanted = f"{path}.bias" if path else "bias"
        if own == "weight" and step.module == path and wanted in tape.biases:
            return wanted
    return None
