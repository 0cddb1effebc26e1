"""The report of a pruning: the sparsity reached and the one requested."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import listed
from ..quantities import count, percent
from ..tables import layer_lines


class SparsityWarning(UserWarning):
    """The requested pruning has a result that is probably not wanted."""


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: shape, entries, removed entries, output units, and the units that lost all their entries."""

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
    """Weights whose units are removed together: their names, the number of prunable units, and of removed ones."""

    weights: tuple[str, ...]
    units: int
    removed: int


@dataclass(frozen=True)
class PruningReport:
    """The sparsity that a pruning reached and the one requested.

    `requested` is the recipe's sparsity. Of `choices` candidates (`kind`: entries, units or blocks) `due` were to be
    removed, the sum of the counts of the scope's groups, each rounded down, and `chosen` are removed. `parameters` is
    the size of the whole model. The sparsity is a fraction of `of`; `share` is the fraction of that removed. `notes`
    says what stays and why. If units span layers, `coupled` lists these layers. `removed_before` entries were removed
    when the pruning began. With rules, `parts` holds the match of each and a report on its weights, then one on the
    weights that no rule matches; `requested` is then the mean weighted by entries.
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
    kind: str = "entries"
    parts: tuple[tuple[tuple[str, ...], PruningReport], ...] = ()

    def __str__(self) -> str:
        layers = layer_lines((layer.name, layer.shape, layer.size - layer.removed) for layer in self.layers)
        return "\n".join([*layers, *sparsity_lines(self)])

    @property
    def removed(self) -> int:
        """The number of weights removed."""
        return sum(layer.removed for layer in self.layers)

    @property
    def size(self) -> int:
        """The number of weights pruned: all that could be removed."""
        return sum(layer.size for layer in self.layers)

    @property
    def reached(self) -> float:
        """The fraction of the pruned weights that is removed."""
        return self.removed / self.size if self.size else 0.0

    @property
    def model_sparsity(self) -> float:
        """The fraction of all parameters of the model that is removed."""
        return self.removed / self.parameters if self.parameters else 0.0


def losses(report: PruningReport, *, filters: bool) -> list[str]:
    """Return a line for the layers, and with `filters` one for the output units, that lost all their weights."""
    dead = [layer for layer in report.layers if layer.dead]
    lines = []
    if dead:
        lines.append(f"no weight is left in {listed([layer.name for layer in dead])}: the model cannot work")
    partly = [layer for layer in report.layers if layer.dead_units and not layer.dead]
    if partly and filters:
        lost = [f"{layer.name} {listed([*map(str, layer.dead_units)], 5)} of {layer.units}" for layer in partly[:3]]
        more = f"; and in {count(len(partly) - 3, 'more layer')}" if len(partly) > 3 else ""
        lines.append(f"filters lost all their weights: {'; '.join(lost)}{more}")
    if report.coupled and report.chosen < report.due:
        last = [layer.weights[0] for layer in report.coupled if layer.removed == layer.units - 1]
        lines.append(
            f"{report.share:.3g} of the {report.of} is removed, {report.requested:g} was requested: the last unit of a "
            f"layer stays, here in {', '.join(last[:5])}{' and others' if len(last) > 5 else ''}"
        )
    return lines


def sparsity_lines(report: PruningReport) -> list[str]:
    """Return the lines that compare the sparsity reached with the one requested."""
    reached, requested = percent(report.reached), percent(report.requested)
    notes = [*_rule_lines(report), *(f"  note: {note}" for note in report.notes)]
    if report.of != "entries":
        return _choice_lines(report) + notes
    lines = [
        f"sparsity {reached}, {requested} requested: {report.removed:,} of {report.size:,} pruned weights removed",
        f"  ({percent(report.model_sparsity)} of all {report.parameters:,} parameters)",
        *_before_lines(report),
    ]
    if report.chosen == report.due and reached != requested and not report.notes:
        lines.append("  (exactly what was due: every group of the scope is rounded down to whole weights)")
    if report.chosen != report.due:
        lines.append(f"warning: {report.due:,} of {report.choices:,} were to be removed, {report.chosen:,} are")
    return lines + notes


def _rule_lines(report: PruningReport) -> list[str]:
    """Return a line for each rule and one for the weights without a rule."""
    return [
        f"  {', '.join(match) or 'the rest'}: {one.chosen:,} of {one.choices:,} {one.of} removed, "
        f"{percent(one.reached)} of the weights, {percent(one.requested)} requested"
        for match, one in report.parts
    ]


def _before_lines(report: PruningReport) -> list[str]:
    """Return a line on what was removed before the pruning, if anything was."""
    if not report.removed_before:
        return []
    share = percent(report.removed_before / report.size) if report.size else "-"
    return [f"  ({report.removed_before:,}, {share} of the pruned weights, were removed before this pruning)"]


def _choice_lines(report: PruningReport) -> list[str]:
    """Return the lines for units, blocks and costs."""
    of = "multiply-adds" if report.of == "flops" else report.of
    kind = "weights" if report.kind == "entries" else report.kind
    lines = [
        f"{kind}: {report.chosen:,} of {report.choices:,} removed, {percent(report.share)} of the {of} "
        f"({percent(report.requested)} requested)",
        f"  with them {percent(report.reached)} of the weights that were to be pruned, "
        f"{percent(report.model_sparsity)} of all {report.parameters:,} parameters",
        *_before_lines(report),
    ]
    if report.chosen != report.due:
        lines.append(f"warning: {report.due:,} of {report.choices:,} {kind} were to be removed, {report.chosen:,} are")
    return lines
