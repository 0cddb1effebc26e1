"""Bias absorption: before constant channels are removed, weight * constant is added to the biases of their readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..channels.study import Study
from ..dataflow.bias_sinks import bias_sinks
from ..mask_state.masks import masked_parameters
from ..recording.context import all_double
from ..recording.ops import Op
from ..recording.recorder import record
from ..sizes.size_attributes import PrunedShapes
from .cuts import Cuts, cut, every_tensor
from .equivalence import doubles, wide_copy
from .indices import without


@dataclass(frozen=True, eq=False)
class Absorbed:
    """The amounts to add to the bias called `bias`: float64, one per row of the uncut weight called `weight`."""

    weight: str
    bias: str
    amounts: Tensor


def fixed_biases(masked: nn.Module, plain: nn.Module) -> frozenset[str]:
    """Return the names of masked vectors (biases) that have removed entries where the weight's row is not zero.

    They must not absorb anything: the smaller model gets its masks again, which would remove the absorbed amounts.
    """
    tensors = every_tensor(plain)
    found = set()
    for name, parameter in masked_parameters(masked).items():
        removed = ~parameter.mask
        if removed.dim() == 1:
            weight = tensors.get(name.removesuffix("bias") + "weight")
            if weight is not None and weight.dim() > 1 and len(weight) == len(removed) and weight.numel():
                rows = weight.flatten(1)
                removed = removed & ((rows.amax(1) != 0) | (rows.amin(1) != 0))
            if removed.any():
                found.add(name)
    return frozenset(found)


def constant_inputs(model: nn.Module, example_input: Any, study: Study) -> dict[Op, Tensor]:
    """Return {bias sink: float64 [channels]}, the values of its constant input channels and zero for the others.

    The values come from a pass in float64, the precision in which the smaller model is compared.
    """
    if not study.constant:
        return {}
    wide = wide_copy(model)
    results: list[tuple[Tensor, ...]] = []
    with all_double():
        recording = record(wide, doubles(example_input), results)
    sinks = {sink.weight.names: sink for sink in bias_sinks(recording).values()}
    seen = {
        value: tensor
        for op, tensors in zip(recording.ops, results, strict=False)
        for value, tensor in zip(op.results, tensors, strict=False)  # writes to memory have no stored results
    }
    found = {}
    for op, channels in study.constant.items():
        sink = sinks.get(study.bias_sinks[op].weight.names)
        if sink is not None and sink.value in seen:
            entering = seen[sink.value].movedim(sink.dim, 0).flatten(1)[:, 0].double()
            found[op] = torch.where(channels, entering, 0.0)
    return found


def absorbed(study: Study, new_shapes: PrunedShapes, inputs: Mapping[Op, Tensor]) -> list[Absorbed]:
    """Return the contributions of the removed constant channels to the layers that read them, to add to the biases."""
    found = []
    for op, entering in inputs.items():
        sink = study.bias_sinks[op]
        removed = torch.from_numpy(~new_shapes.kept_along(sink.value, sink.dim))
        channels = torch.from_numpy(np.flatnonzero(removed.numpy() & (entering != 0).numpy()))
        if not len(channels):
            continue
        weight = sink.weight.constant
        assert weight is not None
        kernel = weight.index_select(1, channels.to(weight.device)).double()
        sums = kernel.flatten(2).sum(2) if weight.dim() > 2 else kernel
        found.append(Absorbed(sink.weight.names[0], sink.bias, sums @ entering[channels].to(weight.device)))
    return found


def cut_and_absorb(model: nn.Module, cuts: Cuts, amounts: Sequence[Absorbed]) -> Callable[[], None]:
    """Cut a model, in place, and add `amounts` to its biases; return a function that undoes both."""
    undo = cut(model, cuts)
    tensors = every_tensor(model)
    before = [(tensors[one.bias], tensors[one.bias].detach().clone()) for one in amounts]
    with torch.no_grad():
        for one, (bias, _) in zip(amounts, before, strict=True):
            rows = {0: cuts.removed.get(one.weight, {}).get(0, ())}
            bias += without(one.amounts, rows).to(bias)

    def back() -> None:
        with torch.no_grad():
            for bias, held in before:
                bias.copy_(held)
        undo()

    return back
