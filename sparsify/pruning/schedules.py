"""Cycles and the plan of mask updates of a training: when, and to which sparsity. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

from ..errors import SparsifyError
from .settings.curves import SCHEDULES as SCHEDULES
from .settings.curves import curve as curve
from .settings.exact import exact
from .settings.prune import DEFAULT_END, DEFAULT_EVERY, Pruning
from .settings.times import parse_time, steps_in

_MOST_UPDATES = 2_000_000
_CLOSE = Fraction(1, 10**9)

Event = Literal["update", "save", "reset", "union"]


@dataclass(frozen=True)
class Update:
    """One change of the masks.

    `step`: after how many optimiser steps (0: before training). `sparsity`: the fraction removed from then on; None in
    the union's cycle, where each group of the scope goes from its own union's sparsity to the target. `cycle`: from 1;
    a schedule without cycles has one. `event`: "update" updates the masks; "save" also adds them to the union; "reset"
    sets all to ones; "union" sets them to the union. `progress`: progress within the cycle, in [0, 1].
    """

    step: int
    sparsity: Fraction | None
    cycle: int
    event: Event
    progress: Fraction


class Cycle(NamedTuple):
    """A cycle from step `begin` to `end`, cut off there if its `length` is larger; `elapsed`: cycles before it."""

    begin: int
    end: int
    length: int
    elapsed: int

    def progress(self, step: int) -> Fraction:
        """Return the progress within the cycle at `step`, 1 at its end and for a cycle of length 0."""
        return Fraction(step - self.begin, self.length) if self.length else Fraction(1)


def window(pruning: Pruning, total_steps: int, steps_per_epoch: int | None = None) -> tuple[int, int]:
    """Return `begin` and `end` in optimiser steps. Raises SparsifyError if reversed or outside training."""
    begin = steps_in(pruning.begin, total_steps, steps_per_epoch, where="prune.begin")
    if pruning.schedule.at_once:
        end, written = begin, pruning.begin
    else:
        written = DEFAULT_END if pruning.end is None else pruning.end
        end = steps_in(written, total_steps, steps_per_epoch, where="prune.end")
    if end > total_steps:
        name = "begin" if pruning.schedule.at_once else "end"
        raise SparsifyError(f"prune.{name}: {written!r} is step {end}, but training has {total_steps} steps")
    if begin > end:
        raise SparsifyError(f"prune.begin: {pruning.begin!r} is step {begin}, after the end of pruning at step {end}")
    return begin, end


def cycles(pruning: Pruning, total_steps: int, steps_per_epoch: int | None = None) -> list[Cycle]:
    """Return the cycles from `begin` to `end`, one for a schedule without cycles.

    By number, they share the steps evenly. By length, they begin at `begin` and follow each other; the last one is
    whole and ends at `end`, and where it begins the one before it is cut off. Raises SparsifyError if they do not fit.
    """
    begin, end = window(pruning, total_steps, steps_per_epoch)
    number = pruning.schedule.cycles
    if not pruning.schedule.cyclical:
        return [Cycle(begin, end, end - begin, 0)]
    if number is not None:
        if end - begin < number:
            raise SparsifyError(f"prune.schedule: {number} cycles do not fit into {end - begin} steps")
        edges = [begin + int(Fraction((end - begin) * index, number) + Fraction(1, 2)) for index in range(number + 1)]
        return [Cycle(left, right, right - left, index) for index, (left, right) in enumerate(pairwise(edges))]
    return _cycles_by_length(pruning, begin, end, _cycle_length(pruning, total_steps, steps_per_epoch))


def _cycle_length(pruning: Pruning, total_steps: int, steps_per_epoch: int | None) -> int:
    written = pruning.schedule.cycle_length
    assert written is not None, "a cyclic schedule has either cycles or cycle_length"
    length = steps_in(written, total_steps, steps_per_epoch, where="prune.schedule.cycle_length")
    if length < 1:
        raise SparsifyError(f"prune.schedule.cycle_length: {written!r} is less than one of the {total_steps} steps")
    return length


def _cycles_by_length(pruning: Pruning, begin: int, end: int, length: int) -> list[Cycle]:
    where, steps = "prune.schedule.cycle_length", end - begin
    if pruning.schedule.ramp == "full" and (steps % length or (steps // length) % 2 == 0):
        raise SparsifyError(
            f"{where}: ramp 'full' must end on a peak, after an odd number of cycles; "
            f"{steps} steps hold {steps / length:.4g} cycles of {length}"
        )
    least = (3 if pruning.schedule.ramp == "full" else 2) if pruning.after_cycles == "union" else 1
    if steps < least * length:
        needed = f"the {least} cycles that a union needs" if least > 1 else "one cycle"
        raise SparsifyError(f"{where}: {steps} steps do not hold {needed} of {length} steps")
    starts = [*range(begin, end - length, length), end - length]
    edges = [*starts, end]
    return [Cycle(left, right, length, index) for index, (left, right) in enumerate(pairwise(edges))]


def update_plan(pruning: Pruning, total_steps: int, steps_per_epoch: int | None = None) -> list[Update]:
    """Return every change of the masks during a training of `total_steps` optimiser steps, in order.

    An update falls on `begin`, on every multiple of `every` after it, and on the end of each whole cycle; where a
    cycle ends and the next one begins, on one step, masks are saved at the target and then reset. Raises SparsifyError
    if the times do not fit into the training.
    """
    every = max(1, steps_in(_every(pruning), total_steps, steps_per_epoch, where="prune.every"))
    begin, end = window(pruning, total_steps, steps_per_epoch)
    if (end - begin) // every > _MOST_UPDATES:
        raise SparsifyError(
            f"prune.every: {(end - begin) // every:,} updates of the masks, of {_MOST_UPDATES:,} that a plan can have"
        )
    return list(_updates(pruning, cycles(pruning, total_steps, steps_per_epoch), every))


def _every(pruning: Pruning) -> float | str:
    if pruning.every is None:
        return DEFAULT_EVERY
    if parse_time(pruning.every).value == 0:
        raise SparsifyError(f"prune.every: {pruning.every!r} is no step at all")
    return pruning.every


def _updates(pruning: Pruning, parts: list[Cycle], every: int) -> Iterator[Update]:
    schedule = _sparsity_of(pruning)
    cyclical, union = pruning.schedule.cyclical, pruning.after_cycles == "union"
    for number, cycle in enumerate(parts, 1):
        last = number == len(parts)
        depends = union and last  # on the union, which is not known before training
        if depends:
            yield Update(cycle.begin, None, number, "union", Fraction(0))
        elif cyclical and not (pruning.schedule.ramp == "full" and cycle.elapsed % 2 == 1):  # that comes down again
            yield Update(cycle.begin, Fraction(0), number, "reset", Fraction(0))
        elif not cyclical and cycle.end > cycle.begin:
            yield Update(cycle.begin, schedule(Fraction(0)), number, "update", Fraction(0))
        for step in range((cycle.begin // every + 1) * every, cycle.end, every):
            progress = cycle.progress(step)
            due = None if depends else schedule(cycle.elapsed + progress)
            yield Update(step, due, number, "update", progress)
        if cycle.end - cycle.begin < cycle.length:
            continue  # cut off by the last cycle before it reached the target: no update at its end
        due = None if depends else schedule(Fraction(cycle.elapsed + 1))
        peak = due == pruning.target
        if last and due is not None and not peak:
            raise SparsifyError(
                f"prune.schedule: '{pruning.schedule.name}' ends at {float(due):g}, not at the target "
                f"{float(pruning.target):g}"
            )
        event: Event = "save" if union and not last and peak else "update"
        yield Update(cycle.end, due, number, event, Fraction(1))


def _sparsity_of(pruning: Pruning) -> Callable[[Fraction], Fraction]:
    """Return the schedule as a function from progress to sparsity.

    Values of a user's own schedule are checked: SparsifyError for one outside [0, 1], and exactly the target within
    1e-9 of it.
    """
    settings = pruning.schedule

    def sparsity(progress: Fraction) -> Fraction:
        """Return the sparsity at `progress`, in [0, 1]."""
        value = settings.curve(progress, pruning)
        if settings.function is None:
            return value  # type: ignore[no-any-return]
        if not isinstance(value, int | float | Fraction) or not 0 <= value <= 1:
            raise SparsifyError(
                f"prune.schedule: '{settings.name}' gives {value!r} at {float(progress):g}; a sparsity is in [0, 1]"
            )
        found = exact(value)
        return pruning.target if abs(found - pruning.target) < _CLOSE else found

    return sparsity
