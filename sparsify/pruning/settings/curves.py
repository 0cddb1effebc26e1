"""Schedules: functions from the progress of pruning to the sparsity due. Needs no torch.

A schedule is any function `schedule(progress, pruning)` of a fraction in [0, 1], from `begin` to `end`, and of the
prune section's settings, that returns the fraction removed, at progress 1 the target. Pass your own from Python,
instead of a name or as `function` among other keys:

    @curve(keys=("initial_sparsity",))
    def quadratic(progress, pruning):
        start = pruning.schedule.initial_sparsity or 0
        return pruning.target + (start - pruning.target) * (1 - progress) ** 2

    pruning = {"sparsity": 0.9, "schedule": {"function": quadratic, "initial_sparsity": 0.3}, "end": 0.8}
    sparsify.Pruner(model, pruning, total_steps)

A cyclical one, `@curve(cyclical=True)`, takes the keys `cycles` and `cycle_length`. Its progress is u, the number of
cycles elapsed; at a whole u > 0 its value is that of the end of a cycle. Every cycle begins with all weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from .exact import exact

if TYPE_CHECKING:
    from .prune import Pruning

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CYCLE_KEYS = ("cycles", "cycle_length")


def curve(*, text: str = "", keys: tuple[str, ...] = (), cyclical: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that sets the `keys` a schedule takes, whether it is cyclical, and its text in the help."""

    def mark(function: _Function) -> _Function:
        marks = {"text": text, "keys": keys + (_CYCLE_KEYS if cyclical else ()), "cyclical": cyclical}
        for name, value in marks.items():
            setattr(function, name, value)
        return function

    return mark


@curve(text="one_shot at `begin`")
def one_shot(progress: Fraction, pruning: Pruning) -> Fraction:
    """Return the target: everything is removed at once, at `begin`."""
    return pruning.target


@curve(keys=("initial_sparsity",))
def linear(progress: Fraction, pruning: Pruning) -> Fraction:
    """Return s_i + (s_f - s_i) * t."""
    initial, final = exact(pruning.schedule.initial_sparsity or 0), pruning.target
    return initial + (final - initial) * progress


@curve(text="cubic (Zhu and Gupta 2017)", keys=("initial_sparsity",))
def cubic(progress: Fraction, pruning: Pruning) -> Fraction:
    """Return s_f + (s_i - s_f) * (1 - t)^3. Zhu and Gupta 2017, equation 1."""
    initial, final = exact(pruning.schedule.initial_sparsity or 0), pruning.target
    return final + (initial - final) * (1 - progress) ** 3


@curve()
def constant(progress: Fraction, pruning: Pruning) -> Fraction:
    """Return the target at any time; which weights are removed still changes from update to update."""
    return pruning.target


@curve(keys=("ramp",), cyclical=True)
def cyclic(progress: Fraction, pruning: Pruning) -> Fraction:
    """Return s * sin(pi/2 * (u mod 1)), for ramp "full" s * |sin(pi/2 * u)|; here `progress` is u, the cycles elapsed.

    At a whole u > 0 the value is the left limit, that of the end of a cycle.
    """
    number = max(1, math.ceil(progress))
    part = progress - (number - 1)
    falling = pruning.schedule.ramp == "full" and number % 2 == 0
    sine = math.sin(math.pi / 2 * float(1 - part if falling else part))
    # Twelve decimals: sin(pi/6) is then one half, and counts do not depend on the last bit of a C library's sine.
    return pruning.target * Fraction(f"{sine:.12f}")


# name -> schedule. A new one is a function above and a row here; its names, keys and help follow.
SCHEDULES: dict[str, Callable[[Fraction, Pruning], float | Fraction]] = {
    "one_shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "constant": constant,
    "cyclic": cyclic,
}


def keys_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the keys of the schedule section that belong to a schedule."""
    keys: tuple[str, ...] = getattr(function, "keys", ())
    return keys


def is_cyclical(function: Callable[..., Any]) -> bool:
    """Return whether a schedule goes in cycles."""
    return bool(getattr(function, "cyclical", False))


def schedules_text() -> str:
    """Return the names of all schedules with their texts, for the help."""
    texts = [getattr(function, "text", "") or name for name, function in SCHEDULES.items()]
    return f"{', '.join(texts[:-1])}, or {texts[-1]}"
