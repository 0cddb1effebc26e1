"""Sparsities and amounts as exact numbers. Needs no torch."""

from __future__ import annotations

import operator
import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

# Short, and with an exponent of three digits at most: '1e-999999999' has a billion digits as a fraction.
_WRITTEN = re.compile(r"[^eE]{1,100}([eE][+-]?\d{1,3})?")
_MOST = 2**20  # the largest denominator of a float's fraction


def exact(number: float | Fraction) -> Fraction:
    """Return a sparsity as a Fraction: that of a float is the nearest one with a denominator up to 2^20.

    The float 0.29, which is a little less than that, becomes 29/100, and the float 1 / 3 a third.
    """
    return number if isinstance(number, Fraction) else Fraction(float(number)).limit_denominator(_MOST)


def _of_number(number: Any) -> float | Fraction | None:
    """Return what a number of NumPy's or torch's means, None if it is neither whole nor real.

    Of a narrow float type it is the fraction of the smallest denominator, in powers of two, that is this number there.
    """
    if "float" not in str(number.dtype):
        return float(number) if "int" in str(number.dtype) else None
    again = number.new_tensor if hasattr(number, "new_tensor") else number.dtype.type
    value = Fraction(number.item())
    tried = (value.limit_denominator(2**power) for power in range(1, 21))
    return next((one for one in tried if again(float(one)).item() == number.item()), value)


def _fraction_removed(value: Any) -> float | Fraction:
    """Return a validated sparsity: a float as it is, everything else as a Fraction."""
    found: float | Fraction | None = None
    if value is None:
        raise PydanticCustomError("missing", "missing key")
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = float(value)
        elif isinstance(value, Fraction):
            found = value
        elif isinstance(value, str | Decimal) and _WRITTEN.fullmatch(str(value)):
            found = Fraction(value)
        elif hasattr(value, "dtype") and not getattr(value, "shape", None):
            found = _of_number(value)
    except (ValueError, ZeroDivisionError, OverflowError, AttributeError, RuntimeError):  # the last of a tensor on meta
        found = None
    if found is None or not 0 <= found <= 1:
        meant = _of_hundred(value)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ValueError(f"{value!r} is no sparsity; it is the fraction removed, in [0, 1], as 0.9 or '1/3'{hint}")
    return found


def _of_hundred(value: Any) -> str:
    """Return the fraction that a percentage means, "" for anything else."""
    written = str(value).strip()
    if isinstance(value, bool) or not _WRITTEN.fullmatch(written):
        return ""
    try:
        number = Fraction(written.removesuffix("%").strip())
    except (ValueError, ZeroDivisionError):
        return ""
    least = 0 if written.endswith("%") else 1
    return f"{float(number / 100):.6g}" if least < number <= 100 else ""


def _whole(value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{value!r} is no amount; it is how many are removed, a whole number")
    return number


_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": r"^\d+(/|\.)\d+$"}]}

# Annotations of pydantic fields for a sparsity, which stays as it was given, and an amount.
Sparsity = Annotated[
    float | Fraction,
    PlainValidator(_fraction_removed),
    PlainSerializer(lambda value: str(value) if isinstance(value, Fraction) else value),
    WithJsonSchema(_SCHEMA),
]
Amount = Annotated[int, BeforeValidator(_whole), WithJsonSchema({"type": "integer", "minimum": 0})]
