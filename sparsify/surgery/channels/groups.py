"""The result of a channel analysis as data: channel groups, and the cost of each operation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One convolution, matrix product or attention of a forward pass.

    `multiply_adds` is its cost before any removal; the cost is proportional to the kept share of every axis. `axes`
    holds int64 group ids, one per index of a dimension, -1 = never removed. `name` is the path of the module whose
    forward ran it.
    """

    name: str
    multiply_adds: int
    axes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Channels:
    """The channel groups of a model for one kind of input.

    `labels` maps `state_dict` names to {dimension: int64 group id per index, -1 = never removed}. `produced` maps each
    parameter whose zeros make a group's outputs zero to the dimension along which its groups lie. `groups` is the
    number of groups, `dead` a bool tensor [groups], True if a group has no influence on the outputs of the current
    model. `barriers` are sentences that say what keeps channels. `uncounted` names operations ("module: operation")
    that may cost multiply-adds and are not in `operations`.
    """

    labels: dict[str, dict[int, Tensor]]
    produced: dict[str, int]
    groups: int
    dead: Tensor
    operations: tuple[Operation, ...]
    barriers: tuple[str, ...]
    uncounted: tuple[str, ...] = ()
