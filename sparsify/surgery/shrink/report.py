"""The report of a shrink: what was removed, what it saves and what was compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...errors import listed
from .cuts import Cuts


@dataclass(frozen=True)
class ShrinkReport:
    """The result of `shrink`: the smaller model, what was removed, and how the two models compare.

    `model` is the smaller model, `cuts` what was removed from it. `groups` counts the channel groups, `removed` the
    removed ones, `pruned` those of the removed ones that masks made dead; the others were dead before. `parameters` and
    `multiply_adds` (of one forward pass on the example) are (before, after), counted on the two models. `difference` is
    the largest difference of the outputs relative to the largest output, in (float64, the model's precision); `seconds`
    is the median time of a forward pass on the example (before, after); both are None without verification. `kept` says
    which dead groups stayed and why. `uncounted` names operations ("module: operation") that `multiply_adds` leaves
    out. `proved` names the other inputs that were compared. `training` is the comparison in train mode without dropout
    and drop path: "equal", the difference, or "" if the model does not run in that mode. `bound` names modules that
    branch on the sizes of their input in Python: for sizes that were not compared they may behave differently.
    `configuration` says which numbers of the model's configuration were updated, or that none could be.
    """

    model: nn.Module
    cuts: Cuts
    groups: int
    removed: int
    pruned: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    difference: tuple[float, float] | None
    seconds: tuple[float, float] | None
    kept: tuple[str, ...]
    proved: tuple[str, ...] = ()
    training: str = ""
    uncounted: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    configuration: str = ""

    def __str__(self) -> str:
        lines = [
            f"shrunk: {self.removed:,} of {self.groups:,} channel groups are gone{self._why()}",
            _line("parameters", *(f"{size:,}" for size in self.parameters), _ratio(self.parameters)),
            _line("multiply-adds", *(f"{cost:,}" for cost in self.multiply_adds), _ratio(self.multiply_adds)),
        ]
        if self.seconds is not None and self.difference is not None:
            lines.append(_line("forward pass", *(f"{1000 * t:.1f} ms" for t in self.seconds), _ratio(self.seconds)))
            double, single = self.difference
            lines.append(
                f"  the outputs differ by {double:.0e} of the largest in float64, {single:.0e} in its own precision"
            )
            others = f", and for {', '.join(self.proved)}" if self.proved else "; no other batch or size was taken"
            lines.append(f"  compared for the example{others}")
            if self.training not in ("", "equal"):
                lines.append(f"  eval only: in train mode {self.training}")
        if self.configuration:
            lines.append(f"  {self.configuration}")
        if self.bound:
            lines.append(f"  bound to these sizes: {listed(self.bound, 3)} may behave differently for others")
        lines += [f"  not counted: multiply-adds of {operation}" for operation in self.uncounted]
        return "\n".join([*lines, *(f"  kept: {reason}" for reason in self.kept)])

    def _why(self) -> str:
        return f" ({self.pruned:,} pruned, {self.removed - self.pruned:,} dead before)" if self.removed else ""


def _line(what: str, *columns: str) -> str:
    before, after, ratio = columns
    return f"  {what:13}{before:>17} -> {after:>15}  {ratio}"


def _ratio(sizes: tuple[float, float]) -> str:
    return f"{100 * sizes[1] / sizes[0]:5.1f} % left" if sizes[0] else ""
