"""What a pruning reached, compared with what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..surgery.masks import MaskedWeight
from .granularity import rows
from .scopes import Counts
from .selection import kept_in_rows


class SparsityWarning(UserWarning):
    """A pruning did what it was told, with a result that is probably not wanted."""


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: shape, number of entries and of removed ones, number of output units and the ones that lost all."""

    name: str
    shape: tuple[int, ...]
    size: int
    removed: int
    units: int
    dead_units: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        return self.removed / self.size if self.size else 0.0

    @property
    def dead(self) -> bool:
        """Whether nothing is left."""
        return self.size > 0 and self.removed == self.size


@dataclass(frozen=True)
class PruningReport:
    """Reached sparsity against requested.

    `requested` is the recipe's sparsity, `due` the sum over the scope's groups of what it comes to, each rounded down,
    out of `choices`, the entries that could be removed: weights, or units. `chosen` of them are removed. `parameters`
    counts the whole model's.
    """

    requested: float
    due: int
    chosen: int
    choices: int
    parameters: int
    layers: tuple[LayerSparsity, ...]

    @property
    def removed(self) -> int:
        """How many weights are removed."""
        return sum(layer.removed for layer in self.layers)

    @property
    def size(self) -> int:
        """How many weights could have been removed."""
        return sum(layer.size for layer in self.layers)

    @property
    def reached(self) -> float:
        """The fraction of the pruned weights that is removed."""
        return self.removed / self.size if self.size else 0.0

    @property
    def model_sparsity(self) -> float:
        """The fraction of all parameters of the model that is removed."""
        return self.removed / self.parameters if self.parameters else 0.0


def pruning_report(
    model: nn.Module,
    weights: Mapping[str, MaskedWeight],
    requested: float,
    due: Counts,
    choices: Mapping[str, Tensor],
) -> PruningReport:
    """Return the report on the present masks. `due` are the counts at the target, `choices` the masks they count in."""
    layers = tuple(_layer(weight) for weight in weights.values())
    return PruningReport(
        requested=requested,
        due=sum(int(torch.as_tensor(count).sum()) for count in due),
        chosen=sum(mask.numel() - int(mask.count_nonzero()) for mask in choices.values()),
        choices=sum(mask.numel() for mask in choices.values()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
    )


def _layer(weight: MaskedWeight) -> LayerSparsity:
    kept = kept_in_rows(rows(weight.mask, weight.module))
    mask = weight.mask
    dead = tuple((kept == 0).nonzero().flatten().tolist()) if mask.numel() else ()
    return LayerSparsity(weight.name, tuple(mask.shape), mask.numel(), mask.numel() - int(kept.sum()), len(kept), dead)


def losses(report: PruningReport, *, filters: bool) -> list[str]:
    """Return a line for the layers, and with `filters` one for the output units, that lost all their weights."""
    dead = [layer for layer in report.layers if layer.dead]
    lines = []
    if dead:
        lines.append(f"no weight is left in {', '.join(layer.name for layer in dead)}: the model cannot work")
    partly = [layer for layer in report.layers if layer.dead_units and not layer.dead]
    if partly and filters:
        lines.append("filters lost all their weights: " + "; ".join(_some_units(layer) for layer in partly))
    return lines


def _some_units(layer: LayerSparsity) -> str:
    shown = ", ".join(str(unit) for unit in layer.dead_units[:5])
    rest = f" and {len(layer.dead_units) - 5} more" if len(layer.dead_units) > 5 else ""
    return f"{layer.name} {shown}{rest} of {layer.units}"
