"""The report of a pruning: sparsity reached against sparsity requested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from ..surgery.ignore_patterns import keyword_clashes
from ..surgery.masks import MaskedWeight, layout, masked_parameters, masked_weights
from .parts import Part
from .selection.candidates import Candidates, EntryCandidates
from .selection.granularity import rows
from .selection.k_lowest import kept_in_rows
from .selection.prunable_weights import maskable_weights
from .selection.scopes import Due
from .settings.prune import Pruning
from .units.group_candidates import GroupCandidates


class SparsityWarning(UserWarning):
    """A pruning as requested has a result that is probably not wanted."""


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
class CoupledLayer:
    """Weights whose units go together: their names, how many units they have that can go, and how many went."""

    weights: tuple[str, ...]
    units: int
    removed: int


@dataclass(frozen=True)
class PruningReport:
    """Reached sparsity against requested.

    `requested` is the recipe's sparsity, `due` the sum over the scope's groups of what it comes to, each rounded down,
    out of `choices`, all that could be removed: weights, units or blocks. `chosen` of them are removed. `parameters`
    counts the whole model's. `of` is what the sparsity is a fraction of, and `share` is gone of that. `notes`
    says what stays and why. Where units span layers, `coupled` lists the layers that they span. `removed_before`
    entries were removed when the pruning began. Where there are rules, `parts` holds for each of them what it matches
    and a report on its weights, then one on the weights that no rule matches; `requested` is then the mean by entries.
    """

    requested: float
    due: int
    chosen: int
    choices: int
    parameters: int
    layers: tuple[LayerSparsity, ...]
    coupled: tuple[CoupledLayer, ...] = ()
    notes: tuple[str, ...] = ()
    of: str = "entries"
    share: float = 0.0
    removed_before: int = 0
    parts: tuple[tuple[tuple[str, ...], PruningReport], ...] = ()

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


def pruning_report(model: nn.Module, pruning: Pruning, parts: Sequence[Part], removed_before: int = 0) -> PruningReport:
    """Return the report on the present masks of a pruning's parts."""
    reports = [_part_report(model, part.pruning, part.candidates) for part in parts]
    clashes = keyword_clashes(maskable_weights(model), pruning.ignore)
    report = reports[0] if len(reports) == 1 else _together(reports, parts)
    return replace(report, notes=(*clashes, *report.notes), removed_before=removed_before)


def _part_report(model: nn.Module, pruning: Pruning, candidates: Candidates) -> PruningReport:
    parameters, weights = masked_parameters(model), masked_weights(model)
    masks = {name: parameters[name].mask for name in candidates.names}
    members = candidates.members(masks)
    due = candidates.due(masks, Due(pruning.target, amount=pruning.amount))
    size = sum(member.size for member in members)
    report = PruningReport(
        requested=float(Fraction(due, size) if pruning.amount is not None and size else pruning.target),
        due=due,
        chosen=sum(member.size - int(member.mask.count_nonzero()) for member in members),
        choices=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=tuple(_layer(weights[name]) for name in candidates.names if name in weights),
        of=pruning.of or pruning.granularity.choices,
        share=float(candidates.removed(masks)),
    )
    if not isinstance(candidates, GroupCandidates):
        return replace(report, notes=candidates.notes if isinstance(candidates, EntryCandidates) else ())
    coupled = [
        CoupledLayer(layer.weights, member.size, member.size - int(member.mask.count_nonzero()))
        for layer, member in zip(candidates.groups.layers, members, strict=True)
    ]
    return replace(report, coupled=tuple(coupled), notes=candidates.groups.notes)


def _together(reports: Sequence[PruningReport], parts: Sequence[Part]) -> PruningReport:
    """Return one report on all parts, which it keeps as well."""
    kinds = {report.of for report in reports}
    size = sum(report.size for report in reports)
    due, chosen, choices = (sum(getattr(one, key) for one in reports) for key in ("due", "chosen", "choices"))
    return PruningReport(
        requested=sum(report.requested * report.size for report in reports) / max(1, size),
        due=due,
        chosen=chosen,
        choices=choices,
        parameters=reports[0].parameters,
        layers=tuple(layer for report in reports for layer in report.layers),
        coupled=tuple(layer for report in reports for layer in report.coupled),
        notes=tuple(note for report in reports for note in report.notes),
        of=kinds.pop() if len(kinds) == 1 else "entries",
        share=chosen / max(1, choices),
        parts=tuple((part.match, report) for part, report in zip(parts, reports, strict=True)),
    )


def _layer(weight: MaskedWeight) -> LayerSparsity:
    kept = kept_in_rows(rows(weight.mask, layout(weight)))
    mask = weight.mask
    dead = tuple((kept == 0).nonzero().flatten().tolist()) if mask.numel() else ()
    return LayerSparsity(weight.name, tuple(mask.shape), mask.numel(), mask.numel() - int(kept.sum()), len(kept), dead)


def losses_of(model: nn.Module, parts: Sequence[Part]) -> list[str]:
    """Return a line for what lost all its weights in each of `parts`, see `losses`."""
    lines = []
    for part in parts:
        report = pruning_report(model, part.pruning, (part,))
        lines += losses(report, filters=part.pruning.granularity.name != "unit")
    return lines


def losses(report: PruningReport, *, filters: bool) -> list[str]:
    """Return a line for the layers, and with `filters` one for the output units, that lost all their weights."""
    dead = [layer for layer in report.layers if layer.dead]
    lines = []
    if dead:
        lines.append(f"no weight is left in {', '.join(layer.name for layer in dead)}: the model cannot work")
    partly = [layer for layer in report.layers if layer.dead_units and not layer.dead]
    if partly and filters:
        lines.append("filters lost all their weights: " + "; ".join(_some_units(layer) for layer in partly))
    if report.coupled and report.chosen < report.due:
        last = [layer.weights[0] for layer in report.coupled if layer.removed == layer.units - 1]
        lines.append(
            f"{report.share:.3g} of the {report.of} is removed, {report.requested:g} was requested: the last unit of a "
            f"layer stays, here in {', '.join(last[:5])}{' and others' if len(last) > 5 else ''}"
        )
    return lines


def _some_units(layer: LayerSparsity) -> str:
    shown = ", ".join(str(unit) for unit in layer.dead_units[:5])
    rest = f" and {len(layer.dead_units) - 5} more" if len(layer.dead_units) > 5 else ""
    return f"{layer.name} {shown}{rest} of {layer.units}"
