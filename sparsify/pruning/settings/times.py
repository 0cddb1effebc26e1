"""Moments and durations of a training as a recipe writes them: 0.8, "20ep" or "5000it". Needs no torch."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, WithJsonSchema

from ...errors import SparsifyError

_ALLOWED = "a time is a fraction of training in [0, 1], epochs as '20ep' or steps as '5000it'"
_PATTERN = re.compile(
    r"\s*(?P<number>\d{1,18}\.?\d{0,40}|\.\d{1,40})(?:[eE](?P<exponent>[+-]?\d{1,2}))?\s*(?P<unit>ep|it|)\s*"
)


class Time(NamedTuple):
    """A moment or a duration: a fraction of training (`unit` ""), epochs ("ep") or optimiser steps ("it")."""

    value: Fraction
    unit: str


def parse_time(value: float | str) -> Time:
    """Return `value` parsed: a fraction of training in [0, 1], epochs as "20ep" or optimiser steps as "5000it".

    Raises ValueError for anything else.
    """
    match = None if isinstance(value, bool) else _PATTERN.fullmatch(str(value))
    if not match:
        raise ValueError(f"{value!r} is no time; {_ALLOWED}")
    number, unit = Fraction(match["number"]) * Fraction(10) ** int(match["exponent"] or 0), match["unit"]
    whole = number.denominator == 1
    if unit == "" and number > 1:
        raise ValueError(f"{value!r} is no time; {_ALLOWED}" + (f" (did you mean '{number}it'?)" if whole else ""))
    if unit == "it" and not whole:
        raise ValueError(f"{value!r} is no time; steps are whole numbers")
    return Time(number, unit)


def steps_in(value: float | str, total_steps: int, steps_per_epoch: int | None = None, *, where: str = "time") -> int:
    """Return the time `value` in whole optimiser steps, a half rounded up.

    `total_steps` is the length of training, `steps_per_epoch` that of an epoch, both in optimiser steps; `where` names
    the setting in errors. Raises SparsifyError for epochs without `steps_per_epoch`, and where that is below 1.
    """
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise SparsifyError(f"steps_per_epoch is {steps_per_epoch}; an epoch has at least one step")
    time = parse_time(value)
    if time.unit == "ep" and steps_per_epoch is None:
        raise SparsifyError(f"{where}: {value!r} counts epochs, so steps_per_epoch is needed")
    length = {"": total_steps, "ep": steps_per_epoch or 0, "it": 1}[time.unit]
    return int(time.value * length + Fraction(1, 2))


def _checked(value: Any) -> Any:
    parse_time(value)
    return value


# Annotation of a pydantic field for a time; the value stays as it was given.
TimeValue = Annotated[
    float | str,
    BeforeValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\d+(\.\d+)?(ep|it)$"},
            ],
            "description": _ALLOWED,
        }
    ),
]
