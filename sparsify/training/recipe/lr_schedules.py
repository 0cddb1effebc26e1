"""Learning-rate schedules: training progress -> factor of the learning rate. No torch here.

A schedule is a function (progress, settings) -> factor with progress in [0, 1]; `learning_rate_factor` makes one for
whole steps. Progress and times are exact fractions, so that a boundary falls on the step it is given for: 5,000 of
78,200 steps is not a binary fraction, and rounding would move every second corner of a triangle by a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field

from ...errors import SparsifyError
from ...pruning.settings.times import TimeValue, steps_in
from .values import Settings

Factor = Annotated[float, Field(ge=0, le=1)]


class _Schedule(Settings):
    name: str
    """which schedule"""
    warmup: TimeValue = 0.0
    """from 0 up to here the factor is multiplied by a line from 0 to 1"""


class ConstantSchedule(_Schedule):
    """The full learning rate throughout."""

    name: Literal["constant"] = "constant"


class CosineSchedule(_Schedule):
    """In every cycle half a cosine from 1 down to `final`."""

    name: Literal["cosine"] = "cosine"
    cycles: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """equal parts of training, each starting again at the full learning rate"""
    final: Factor = 0.0
    """factor at the end of a cycle"""


class StepSchedule(_Schedule):
    """The learning rate multiplied by `factor` at each of some moments."""

    name: Literal["step"] = "step"
    at: Annotated[tuple[TimeValue, ...], Field(strict=False)] = (0.5, 0.75)
    """when it is multiplied"""
    factor: Factor = 0.1
    """what it is multiplied by"""


class TriangularSchedule(_Schedule):
    """Up in a line from `low` to 1 and down again, over and over (the study: 5000it each way)."""

    name: Literal["triangular"] = "triangular"
    up: TimeValue = 0.5
    """how long a way up takes"""
    down: TimeValue = 0.5
    """how long a way down takes"""
    phase: TimeValue = 0.0
    """how far into a triangle training starts; 0 is at the bottom, on the way up"""
    low: Factor = 0.0
    """factor at the bottom"""


class ConstantLinearConstantSchedule(_Schedule):
    """1 until `begin`, a line down to `final` at `end`, then constant (the study's baseline)."""

    name: Literal["constant_linear_constant"] = "constant_linear_constant"
    begin: TimeValue = 0.5
    """where the line starts"""
    end: TimeValue = 0.9
    """where the line ends"""
    final: Factor = 0.01
    """factor from there on"""


LrSchedule = Annotated[
    ConstantSchedule | CosineSchedule | StepSchedule | TriangularSchedule | ConstantLinearConstantSchedule,
    Field(discriminator="name"),
]


def constant(progress: Fraction, settings: Any) -> float:
    """Return 1."""
    return 1.0


def cosine(progress: Fraction, settings: Any) -> float:
    """Return final + (1 - final) * (1 + cos(pi * v)) / 2, v the position within the cycle in [0, 1).

    Loshchilov and Hutter 2017 (SGDR), equation 5, with cycles of equal length; training's end is the end of a cycle.
    """
    position = float(progress * settings.cycles % 1) if progress < 1 else 1.0
    return float(settings.final + (1 - settings.final) * (1 + math.cos(math.pi * position)) / 2)


def step(progress: Fraction, settings: Any) -> float:
    """Return factor ** (number of the times `at` that have passed)."""
    return float(settings.factor ** sum(progress >= moment for moment in settings.at))


def triangular(progress: Fraction, settings: Any) -> float:
    """Return the height at `progress` of triangles between `low` and 1. Smith 2017 (cyclical learning rates)."""
    position = (progress + settings.phase) % (settings.up + settings.down)
    if position < settings.up:
        height = position / settings.up
    else:
        height = 1 - (position - settings.up) / settings.down
    return float(settings.low + (1 - settings.low) * float(height))


def constant_linear_constant(progress: Fraction, settings: Any) -> float:
    """Return 1 until `begin`, `final` from `end` on, and the line between them in between."""
    if progress <= settings.begin:
        return 1.0
    if progress >= settings.end:
        return float(settings.final)
    share = float((progress - settings.begin) / (settings.end - settings.begin))
    return float(1 - (1 - settings.final) * share)


LR_SCHEDULES: dict[str, Callable[[Fraction, Any], float]] = {
    "constant": constant,
    "cosine": cosine,
    "step": step,
    "triangular": triangular,
    "constant_linear_constant": constant_linear_constant,
}

_TIMES = frozenset({"warmup", "at", "up", "down", "phase", "begin", "end"})


def learning_rate_factor(settings: Any, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function step -> factor of the learning rate, for optimiser steps 0 to `total_steps`.

    Times are rounded to whole steps. Raises SparsifyError for triangles of length 0 and a line that ends before it
    begins.
    """
    resolved = SimpleNamespace(**dict(settings))
    for name in _TIMES & set(type(settings).model_fields):
        value = getattr(settings, name)
        where = f"train.lr_schedule.{name}"
        times = value if isinstance(value, tuple) else (value,)
        moments = [Fraction(steps_in(time, total_steps, steps_per_epoch, where=where), total_steps) for time in times]
        setattr(resolved, name, tuple(moments) if isinstance(value, tuple) else moments[0])
    if settings.name == "triangular" and resolved.up + resolved.down == 0:
        raise SparsifyError("train.lr_schedule: a triangle with up and down both 0 has no length")
    if settings.name == "constant_linear_constant" and resolved.begin > resolved.end:
        raise SparsifyError(f"train.lr_schedule: begin ({settings.begin}) comes after end ({settings.end})")
    schedule = LR_SCHEDULES[settings.name]

    def factor(step: int) -> float:
        progress = Fraction(step, total_steps)
        rise = float(progress / resolved.warmup) if progress < resolved.warmup else 1.0
        return rise * schedule(progress, resolved)

    return factor
