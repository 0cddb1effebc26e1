"""remove(): remove chosen units from a model, with everything that is coupled to them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import nn

from ..arguments import takes
from ..errors import SparsifyError, did_you_mean
from ..surgery.analysis.coupling import Heads
from ..surgery.channels.analyse import Channels, analyse
from ..surgery.conversion.convert import convert
from ..surgery.conversion.fold import fold
from ..surgery.mask_state.masks import all_masked_parameters, get_masks, is_computed, masked_weights
from ..surgery.mask_state.parametrized import computed_names
from ..surgery.rules.table import Rule
from ..surgery.shrink.report import ShrinkReport
from ..surgery.shrink.shrink import shrink
from ..surgery.unwrap import unwrap
from .units.group_scores import keep_groups
from .units.groups import learn_groups


@takes(model=nn.Module, units=Mapping, verify=bool, rules=(Mapping, NoneType), examples=(list, tuple))
def remove(
    model: nn.Module,
    example_input: Any,
    units: Mapping[str, Iterable[int]],
    *,
    verify: bool = True,
    heads: Heads = "whole",
    rules: Mapping[str, Rule] | None = None,
    examples: Sequence[Any] = (),
) -> ShrinkReport:
    """Return a smaller plain model without the chosen output units, as the `model` of a report like that of `shrink`.

    `units` maps layers, or weights, to the indices of their outputs: {"layer1.0.conv1": [2, 6, 9]}. A unit is removed
    with all that is coupled to it: biases, norms, the inputs of its readers, in residual networks the units of other
    layers that it is added to, and whatever no longer has influence. The outputs are those of `model` with these units
    at zero, compared unless `verify` is False; the other arguments are those of `shrink`. `model` is not changed; its
    masked weights are zero in the small model.
    Raises SparsifyError, naming it, for an unknown layer, an index out of range, and a unit that cannot be removed,
    with the reason.
    """
    work = fold(unwrap(model))
    convert(work)
    if computed_names(work) or any(map(is_computed, all_masked_parameters(work))):
        work = fold(work)  # stores computed weights, whose units are then those of plain ones
        convert(work)
    channels = analyse(work, example_input, heads=heads, rules=rules, examples=examples)
    chosen = torch.zeros(channels.groups, dtype=torch.bool)
    wanted = {layer: _indices_of(work, channels, layer, indices) for layer, indices in units.items()}
    for layer, indices in wanted.items():
        name, dimension = _weight_of(work, channels, layer)
        chosen[channels.labels[name][dimension][indices]] = True
    groups = learn_groups(work, channels, masked_weights(work))
    stuck = chosen & ~groups.prunable
    if bool(stuck.any()):
        raise SparsifyError(f"remove: {_where(channels, stuck, wanted)} cannot go: {_reason(groups.notes)}")
    for tied in groups.layers:
        if not tied.spare and bool(chosen[tied.groups].all()):
            raise SparsifyError(f"remove: nothing would be left of {', '.join(tied.weights)}; leave one unit")
    keep_groups(groups, ~chosen, get_masks(work), None)
    report = shrink(work, example_input, verify=verify, heads=heads, rules=rules, examples=examples, dead="masks")
    report.model.train(model.training)
    for layer, indices in wanted.items():
        name, dimension = _weight_of(work, channels, layer)
        gone = report.cuts.removed.get(name, {}).get(dimension, ())
        left = sorted(set(indices) - set(gone))
        if left:
            raise SparsifyError(f"remove: {layer}: {left[0]} cannot go: {_reason(report.kept)}")
    return report


def _weight_of(model: nn.Module, channels: Channels, layer: str) -> tuple[str, int]:
    """Return the weight of a layer, and the dimension of its units."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tables = [name for name in channels.produced if name in parameters and parameters[name].dim() > 1]
    weights = list(dict.fromkeys([*masked_weights(model), *tables]))
    own = [name for name in weights if layer in (name, name.rpartition(".")[0])]
    if not own:
        known = [*weights, *(name.rpartition(".")[0] for name in weights)]
        exists = layer in {*parameters, *dict(model.named_modules())}
        has = "is no layer whose weight takes a mask" if exists else "is not in the model"
        raise SparsifyError(f"remove: '{layer}' {has}; name a layer or its weight{did_you_mean(layer, known)}")
    if len(own) > 1:
        raise SparsifyError(f"remove: {layer} has several weights; name one of {', '.join(own)}")
    if own[0] not in channels.produced:
        raise SparsifyError(f"remove: the units of {layer} cannot go: {_reason(channels.barriers)}")
    return own[0], channels.produced[own[0]]


def _indices_of(model: nn.Module, channels: Channels, layer: str, indices: Iterable[int]) -> list[int]:
    """Return the indices of the chosen units of a layer as ints, each of which can go."""
    name, dimension = _weight_of(model, channels, layer)
    labels, found = channels.labels[name][dimension], []
    if not isinstance(indices, Iterable) or isinstance(indices, str) or getattr(indices, "ndim", 1) == 0:
        raise SparsifyError(f"remove: {layer}: {indices!r} is no list of units, as [2, 6, 9]")
    for index in indices:
        number = _whole(index)
        if number is None or not 0 <= number < len(labels):
            raise SparsifyError(f"remove: {layer}: {index!r} is no unit of it; they are 0 to {len(labels) - 1}")
        if labels[number] < 0:
            raise SparsifyError(f"remove: {layer}: {number} cannot go: {_reason(channels.barriers)}")
        found.append(number)
    return found


def _whole(index: Any) -> int | None:
    """Return an int, or one of numpy or in a tensor, as an int; None for anything else."""
    try:
        return None if isinstance(index, bool) or getattr(index, "dtype", None) is torch.bool else operator.index(index)
    except TypeError:
        return None


def _where(channels: Channels, stuck: torch.Tensor, units: Mapping[str, Iterable[int]]) -> str:
    labels = {
        name: axes[channels.produced[name]] for name, axes in channels.labels.items() if name in channels.produced
    }
    for layer, indices in units.items():
        for name, own in labels.items():
            wrong = [index for index in indices if layer in (name, name.rpartition(".")[0]) and stuck[own[index]]]
            if wrong:
                return f"{layer}: {wrong[0]}"
    return "a unit"


def _reason(sentences: Sequence[str]) -> str:
    return sentences[0] if sentences else "it is part of the outputs, or tied to what is"
