"""The result of a channel analysis as data: the groups of a model, and what its operations cost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One convolution, matrix product or attention of a forward pass.

    `multiply_adds` is its cost while nothing is removed; it is proportional to the kept share of every axis. `axes`
    holds int64 group ids, one per index of a dimension, -1 = never removed. `name` is the path of the module whose
    forward it ran in.
    """

    name: str
    multiply_adds: int
    axes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Channels:
    """The channel groups of a model for one kind of input.

    `labels` maps `state_dict` names to {dimension: int64 group id per index, -1 = never removed}. `produced` maps the
    parameters whose zeros make a group's outputs zero to the dimension that the groups lie along. `groups` is their
    number, `dead` a bool tensor [groups]: whether a group has no influence on the outputs of the model as it is.
    `barriers` says, a sentence each, what keeps channels. `uncounted` names operations ("module: operation") that may
    cost multiply-adds and are not in `operations`.
    """

    labels: dict[str, dict[int, Tensor]]
    produced: dict[str, int]
    groups: int
    dead: Tensor
    operations: tuple[Operation, ...]
    barriers: tuple[str, ...]
    uncounted: tuple[str, ...] = ()
