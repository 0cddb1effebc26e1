"""Channels: which of a model's channels have to go together, and which can go now without any change.

A *group* is a set of channels that live and die together: the rows of weights that make them, the entries of biases and
norms, the columns that read them. `analyse` finds the groups by running the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..calls import inputs_of
from ..errors import unknown
from .agreement import agreed, dead_by_group
from .analysis.bias_sinks import BiasSink, bias_sinks
from .analysis.coupling import Coupling, Heads, varying
from .analysis.liveness import Liveness
from .analysis.mac_counts import uncounted
from .analysis.reasons import reasons, spoiling
from .analysis.union_find import PINNED
from .conversion.fold import fold
from .masks import all_masked_parameters
from .recording.ops import Op, Recording, Value
from .recording.recorder import record
from .rules.table import Rule, Rules, checked_rules

Dead: TypeAlias = Literal["masks", "zeros"]
_MakeLiveness: TypeAlias = Callable[..., Liveness]  # of one pass and its rules


@dataclass(frozen=True)
class Operation:
    """One conv, matrix product or attention: its cost is `multiply_adds` times the kept share of every axis.

    `axes` holds int64 group ids per index, -1 = stays; `name` is the module whose forward it ran in.
    """

    name: str
    multiply_adds: int
    axes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Channels:
    """The groups of a model for one kind of input.

    `labels` maps names of the `state_dict` to {dimension: int64 group id per index, -1 = never removed}; `produced`
    maps the parameters along whose dimension zeros make the group's outputs zero to that dimension; `dead` tells for
    each group whether it is without influence on the outputs as the model is now; `barriers` are sentences. `uncounted`
    names operations that may take multiply-adds of which `operations` knows nothing: "module: operation".
    """

    labels: dict[str, dict[int, Tensor]]
    produced: dict[str, int]
    groups: int
    dead: Tensor
    operations: tuple[Operation, ...]
    barriers: tuple[str, ...]
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What `analyse` worked out on the way: the pass, its couplings, the group id of each number (-1: stays).

    `constant` tells which channels that enter an operation hold one nonzero value whatever the input, for the operations in
    `bias_sinks`, which can take them into a bias, if there are any. `pruned` tells for each group whether it is dead
    because of masks, whatever parameters learn.
    """

    recording: Recording
    coupling: Coupling
    ids: np.ndarray[Any, Any]
    channels: Channels
    bias_sinks: dict[Op, BiasSink]
    constant: dict[Op, Tensor]
    pruned: np.ndarray[Any, Any]


def analyse(
    model: nn.Module,
    example_input: Any,
    *,
    heads: Heads = "whole",
    rules: Mapping[str, Rule] | None = None,
    examples: Sequence[Any] = (),
) -> Channels:
    """Return the groups of a model's channels, found by running it once, in eval mode, on `example_input`.

    Of a converted model they are those of the folded one.

    In attention a group is a whole head, or, with `heads` "size", one of the entries of every head's queries and keys,
    or values; a model that lost such must go on computing attention as it does here, not fused. SparsifyError for
    another word. `rules` has rules for operations by name ("mylib::gate"), before those that are known. Groups that are
    not the same in a pass of one of the further `examples` are left out, and a barrier says so. Errors of the model's
    forward are passed on. The model is not changed.
    """
    check_heads("analyse", heads)
    if any(True for _ in all_masked_parameters(model)):
        model = fold(model)
    own = checked_rules("analyse", rules)
    channels = study(record(model, inputs_of(example_input, "analyse", model)), heads=heads, rules=own).channels
    for number, other in enumerate(examples):
        found = study(record(model, inputs_of(other, "analyse", model)), heads=heads, rules=own).channels
        channels = agreed(channels, found, f"example {number + 2}")
    return channels


def check_heads(where: str, heads: str) -> None:
    """Raise SparsifyError unless `heads` is one of the two words."""
    if heads not in get_args(Heads):
        raise unknown("heads", heads, get_args(Heads), where=where)


def check_dead(where: str, dead: str) -> None:
    """Raise SparsifyError unless `dead` is one of the two words."""
    if dead not in get_args(Dead):
        raise unknown("dead", dead, get_args(Dead), where=where)


def study(
    recording: Recording,
    *,
    killable: bool = True,
    heads: Heads = "whole",
    dead: Dead = "zeros",
    masks: Mapping[str, Tensor] | None = None,
    rules: Rules | None = None,
    by_group: Container[Op] = (),
) -> Study:
    """Return the groups of channels in a recorded pass; with `killable` only those that zeros can make dead.

    A group is dead, with `dead` "zeros", by what parameters hold, or, with "masks", by what `masks` remove of them
    (bool by first name, True = keep), whatever the rest learns. Grouped convolutions lose whole groups if
    they are among `by_group`, or, without `killable`, if more of what is dead are such.
    """
    rules = rules or Rules()
    coupling = Coupling(recording, rules.couple, heads, by_group)
    sinks = bias_sinks(recording)
    liveness = partial(Liveness, recording, rules.flow, sinks)
    roots = coupling.numbers.find()
    on_activations = np.zeros(len(roots), dtype=bool)
    for value, axes in coupling.axes.items():
        if value.constant is None:
            for axis in axes:
                on_activations[roots[axis.numpy()].reshape(-1)] = True
    of_the_model = np.zeros(len(roots), dtype=bool)
    for first, end, *_ in coupling.ranges:
        of_the_model[roots[first:end]] = True
    candidates = np.flatnonzero(on_activations & of_the_model)
    # What is all of a dimension stays: nothing would be left.
    everything = [roots[first] for first, end, *_ in coupling.ranges if (roots[first:end] == roots[first]).all()]
    candidates = candidates[~np.isin(candidates, [PINNED, *everything])]
    ids = np.full(len(roots), -1, dtype=np.int64)
    ids[candidates] = np.arange(len(candidates))
    ids = ids[roots]
    count = len(candidates)
    produced = _produced(coupling)
    if killable:
        able = _killable(recording, liveness, coupling, ids, count, _labels(coupling, ids), produced)
        ids = np.where((ids >= 0) & able[ids], ids, -1) if count else ids
        ids = np.where(ids >= 0, np.cumsum(able)[ids] - 1, -1) if count else ids
        count = int(able.sum())
    labels = _labels(coupling, ids)
    pruned, live = _pruned(liveness, coupling, ids, count, masks or {})
    alive = ~pruned
    if dead == "zeros":
        live = liveness()
        alive = _alive(live, coupling, ids, count)
        _note_failures(live, coupling)
        pruned &= ~alive
    whole = dead_by_group(live, coupling.grouped) if live is not None and not killable and not by_group else None
    if whole:
        return study(recording, killable=False, heads=heads, dead=dead, masks=masks, rules=rules, by_group=whole)
    still = {} if live is None else live.constant_channels
    operations = tuple(
        Operation(op.module, cost, tuple(torch.from_numpy(ids[axis.numpy()]) for axis in axes))
        for op, cost, axes in coupling.operations
    )
    kept = {name: dim for name, dim in produced.items() if dim in labels.get(name, {})}
    stays = reasons(coupling, ids, lambda: _spoiling(recording, liveness, coupling)) if killable else ()
    barriers = (*coupling.barriers, *stays)
    channels = Channels(
        labels,
        kept,
        count,
        torch.from_numpy(~alive),
        operations,
        barriers,
        uncounted(recording.ops[: recording.eval_count]),
    )
    return Study(recording, coupling, ids, channels, sinks, still, pruned)


def _labels(coupling: Coupling, ids: np.ndarray[Any, Any]) -> dict[str, dict[int, Tensor]]:
    labels: dict[str, dict[int, Tensor]] = {}
    for first, end, value, d in coupling.ranges:
        numbers = ids[first:end]
        if (numbers >= 0).any():
            for name in value.names:
                labels.setdefault(name, {})[d] = torch.from_numpy(numbers.copy())
    return labels


def _produced(coupling: Coupling) -> dict[str, int]:
    """Return the parameters whose zeros make channels dead, with the dimension."""
    marked = np.zeros(coupling.numbers.count, dtype=bool)
    for axis in coupling.produced:
        marked[axis.numpy().reshape(-1)] = True
    roots = coupling.numbers.find()
    read = np.zeros(len(roots), dtype=bool)
    for axis in coupling.by_reading:
        read[roots[axis.numpy().reshape(-1)]] = True
    found: dict[str, int] = {}
    for by_reading in (True, False):  # a parameter has one dimension that is masked
        for first, end, value, d in coupling.ranges:
            makes = read[roots[first:end]].any() and d == 1 if by_reading else marked[first:end].any()
            if value.trainable and makes and (roots[first:end] != PINNED).any():
                found |= dict.fromkeys(value.names, d)
    return found


def _spoiling(recording: Recording, liveness: _MakeLiveness, coupling: Coupling) -> dict[int, Op]:
    """Return the first operation that makes something else of each number's zeros, by the number's root."""
    roots = coupling.numbers.find()
    produced = _produced(coupling)
    kept = {}
    for value in dict.fromkeys(recording.state.values()):
        if value.names[0] in produced:
            kept[value.names[0]] = torch.zeros([1] * len(value.shape), dtype=torch.bool)
    live = liveness(kept)

    def carries(value: Value) -> set[int]:
        if value.constant is not None or value not in live.flags:
            return set()
        flags = live.alive(value)
        alike = coupling.claimed.get(value, ())
        axes = [axis for axis in coupling.axes.get(value, ()) if not any(axis is other for other in alike)]
        numbers = [np.broadcast_arrays(roots[axis.numpy()], flags) for axis in axes]
        return {number for found, alive in numbers for number in np.unique(found[alive]).tolist()}

    return spoiling(recording.ops, carries)


def _note_failures(live: Liveness, coupling: Coupling) -> None:
    for op, failure in live.failures.items():
        where = op.module or "the model"
        coupling.barriers[f"{where}: operation '{op.name}' does not fit its rule ({failure})"] = None


def _pruned(
    liveness: _MakeLiveness,
    coupling: Coupling,
    ids: np.ndarray[Any, Any],
    count: int,
    masks: Mapping[str, Tensor],
) -> tuple[np.ndarray[Any, Any], Liveness | None]:
    """Return which groups are dead because of masks, and the flags under these; None for those without masks."""
    if not masks:
        return np.zeros(count, dtype=bool), None
    live = liveness(masks, learning=True)
    dead = ~_alive(live, coupling, ids, count)
    if dead.any():
        dead &= _alive(liveness(learning=True), coupling, ids, count)
    return dead, live


def _alive(live: Liveness, coupling: Coupling, ids: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return for each group whether an activation that may be nonzero and is read carries it."""
    alive = np.zeros(count + 1, dtype=bool)  # the last is for entries that stay
    carried = [np.zeros(0, dtype=np.int64)]
    for value, axes in coupling.axes.items():
        if value.constant is not None or not axes or value not in live.flags:
            continue
        flags = live.alive(value)
        alike = coupling.claimed.get(value, ())
        for axis in (axis for axis in axes if not any(axis is other for other in alike)):
            dims = varying(axis)
            others = tuple(d for d in range(flags.ndim) if d not in dims and flags.shape[d] > 1)
            reduced = flags.any(axis=others, keepdims=True) if others else flags
            numbers = axis.numpy()
            if numbers.shape != reduced.shape:
                numbers, reduced = np.broadcast_arrays(numbers, reduced)
            carried.append(numbers[reduced])
    alive[ids[np.concatenate(carried)]] = True
    return alive[:count]


def _killable(
    recording: Recording,
    liveness: _MakeLiveness,
    coupling: Coupling,
    ids: np.ndarray[Any, Any],
    count: int,
    labels: Mapping[str, Mapping[int, Tensor]],
    produced: Mapping[str, int],
) -> np.ndarray[Any, Any]:
    """Return for each group whether zeros in what produces it make it dead, whatever other parameters learn.

    That is tried on one half of the groups, then on the other.
    """
    killable = np.zeros(count, dtype=bool)
    halves = np.random.default_rng(0).permutation(count) % 2 == 0
    for half in (halves, ~halves):
        kept = {}
        for value in dict.fromkeys(recording.state.values()):
            name = value.names[0]
            if name in produced and produced[name] in labels.get(name, {}):
                numbers = labels[name][produced[name]].numpy()
                sizes = [1] * len(value.shape)
                sizes[produced[name]] = -1
                kept[name] = torch.from_numpy((numbers < 0) | ~half[numbers]).reshape(sizes)
        live = liveness(kept, learning=True)
        _note_failures(live, coupling)
        killable |= half & ~_alive(live, coupling, ids, count)
    return killable
