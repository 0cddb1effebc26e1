"""The channel analysis of one recording: groups, dead groups, and the values of constant channels."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..analysis.coupling import Coupling, Heads
from ..analysis.group_ids import channel_dims, group_ids, labels_of, only, produced_dims
from ..analysis.mac_counts import uncounted
from ..analysis.reasons import reasons
from ..dataflow.bias_sinks import BiasSink, bias_sinks
from ..dataflow.group_liveness import alive_groups, first_spoiling_ops, killable_groups, note_failures, pruned_groups
from ..dataflow.kept_constants import kept_constants
from ..dataflow.liveness import Liveness, own_surroundings
from ..recording.ops import Op, Recording
from ..rules.table import Rules
from .agreement import dead_by_group
from .groups import Channels, Operation

Dead: TypeAlias = Literal["masks", "zeros"]


@dataclass(frozen=True)
class Study:
    """The result of a channel analysis, `channels`, with its intermediate results.

    `ids` holds the group id of every channel number of `coupling` (-1 = never removed). `bias_sinks` are the operations
    whose bias can absorb constant channels; `constant` maps some of them to bool [channels], which marks the input
    channels with one nonzero value for every input. `pruned`, bool [groups], marks the groups that masks make dead,
    whatever the parameters learn. `kept_constants` says where constant channels stay, and why.
    """

    recording: Recording
    coupling: Coupling
    ids: np.ndarray[Any, Any]
    channels: Channels
    bias_sinks: dict[Op, BiasSink]
    constant: dict[Op, Tensor]
    pruned: np.ndarray[Any, Any]
    kept_constants: tuple[str, ...] = ()


@own_surroundings()
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
    """Return the analysis of a recording; with `killable`, only of the groups that zeros can make dead.

    `dead` decides what makes a group dead: "zeros", the current values of parameters; "masks", the entries that `masks`
    remove (bool, True = keep, by the first name of their parameter), whatever the other entries learn. Grouped
    convolutions in `by_group` lose whole groups; without `killable`, so do those that lose more that way.
    """
    rules = rules or Rules()
    coupling = Coupling(recording, rules.couple, heads, by_group)
    sinks = bias_sinks(recording)
    ids, count = group_ids(coupling)
    liveness = partial(Liveness, recording, rules.flow, sinks, channel_dims=channel_dims(coupling))
    produced = produced_dims(coupling)
    if killable:
        able = killable_groups(recording, liveness, coupling, ids, count, labels_of(coupling, ids), produced)
        ids, count = only(ids, able), int(able.sum())
    pruned, live = pruned_groups(liveness, coupling, ids, count, masks or {})
    alive = ~pruned
    if dead == "zeros":
        live = liveness()
        alive = alive_groups(live, coupling, ids, count)
        note_failures(live, coupling)
        pruned &= ~alive
    whole = dead_by_group(live, coupling.grouped) if live is not None and not killable and not by_group else None
    if whole:
        return study(recording, killable=False, heads=heads, dead=dead, masks=masks, rules=rules, by_group=whole)
    stays = reasons(coupling, ids, lambda: first_spoiling_ops(recording, liveness, coupling)) if killable else ()
    channels = _channels(recording, coupling, ids, produced, ~alive, stays)
    if live is None:
        return Study(recording, coupling, ids, channels, sinks, {}, pruned)
    constants = () if killable else kept_constants(live, coupling, ids, alive)
    return Study(recording, coupling, ids, channels, sinks, live.constant_channels, pruned, constants)


def _channels(
    recording: Recording,
    coupling: Coupling,
    ids: np.ndarray[Any, Any],
    produced: Mapping[str, int],
    dead: np.ndarray[Any, Any],
    stays: tuple[str, ...],
) -> Channels:
    labels = labels_of(coupling, ids)
    operations = tuple(
        Operation(op.module, cost, tuple(torch.from_numpy(ids[axis.numpy()]) for axis in axes))
        for op, cost, axes in coupling.operations
    )
    return Channels(
        labels,
        {name: dim for name, dim in produced.items() if dim in labels.get(name, {})},
        len(dead),
        torch.from_numpy(dead),
        operations,
        (*coupling.barriers, *stays),
        uncounted(recording.ops[: recording.eval_count]),
    )
