"""The decisions of a conversion, made before the model is touched: how each mask is applied, and modules' classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..mask_state.masks import Layout
from ..module_walk import owner_of
from ..tracing.own_graphs import OwnGraphs
from .foreign_changes import unreachable_weights

Key = tuple[int, str]  # id of the owning module, parameter name


def key_at(module: nn.Module, path: str) -> Key:
    """Return the key of the parameter at `path` below a module."""
    owner, name = owner_of(module, path)
    return id(owner), name


@dataclass
class ConversionPlan:
    """The decisions of a conversion, by id of the module. `names` maps ids to the modules' qualified names."""

    names: dict[int, str]
    how: dict[Key, str] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)
    layouts: dict[Key, Layout] = field(default_factory=dict)  # of weights, where known
    eager: set[int] = field(default_factory=set)  # modules that run eagerly under torch.compile (see `Use.eager`)
    functional: set[int] = field(default_factory=set)  # modules that call submodules with other weights
    dense: set[Key] = field(default_factory=set)  # weights that a forward reads without a mask
    kinds: dict[int, str] = field(default_factory=dict)  # module -> the kind of its new class
    reads: dict[int, list[str]] = field(default_factory=dict)  # module -> paths of parameters its forward reads masked
    traced: dict[int, OwnGraphs] = field(default_factory=dict)  # the forwards that were traced
    trace_cache: dict[Any, OwnGraphs] = field(default_factory=dict)  # by the structure and settings of a module
    notes: list[str] = field(default_factory=list)
    extra: set[Key] = field(default_factory=set)  # extra parameters to mask (`mask_also`)
    reached: set[Key] = field(default_factory=set)  # extra parameters that a forward reads masked
    blocked: dict[Key, str] = field(default_factory=dict)  # parameters that a forward reads without a mask -> why
    outside: dict[int, str] = field(default_factory=dict)  # ids of parameters read from outside -> why they get no mask
    owners: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)  # of every weight-like parameter, by name
    _unreachable: dict[int, dict[str, str]] = field(default_factory=dict)

    def unreachable(self, module: nn.Module) -> dict[str, str]:
        """Return `unreachable_weights(module)`, cached, since the model does not change while a plan is made."""
        if id(module) not in self._unreachable:
            self._unreachable[id(module)] = unreachable_weights(module)
        return self._unreachable[id(module)]
