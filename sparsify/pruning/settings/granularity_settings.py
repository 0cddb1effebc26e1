"""The granularity section of a recipe: what is kept or removed together. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic_core import CoreSchema

from .sections import Named, enum, one_of

# The names are written here as well as in the table they select from, because that needs torch.
GRANULARITY_NAMES = ("weight", "unit", "block", "n:m")

_OWNERS = {"aggregate": "unit", "heads": "unit", "n": "n:m", "m": "n:m", "size": "block"}
_SIZE_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}


def _rows_by_columns(value: Any) -> Any:
    extents = list(value) if isinstance(value, list | tuple) else []
    if len(extents) != 2 or not all(type(extent) is int and extent > 0 for extent in extents):
        raise ValueError(f"{value!r} is no block size; it is rows by columns, as in [4, 1]")
    return value


class GranularitySettings(Named):
    """What is kept or removed together.

    A name alone is allowed where nothing else is needed; short forms are 2:4 for {name: "n:m", n: 2, m: 4} and 4x1 for
    {name: block, size: [4, 1]}.
    """

    name: Annotated[str, one_of("granularity", GRANULARITY_NAMES), enum(GRANULARITY_NAMES)]
    """weight: each by itself; unit: all that makes an output channel or feature, with those that it is tied to; block:
    a rectangle of a weight, seen as [out, in * kh * kw]; n:m: of each m neighbours along the inputs n are kept"""
    aggregate: Literal["mean", "sum", "max", "l2"] | None = None
    """unit: a unit's score: the mean (default) or maximum of the mean scores of its rows in each weight, or the sum or
    L2 norm over all entries of these"""
    heads: Literal["whole", "size"] | None = None
    """unit: what goes of attention: whole heads (default), or entries of all heads' queries and keys, or values"""
    n: Annotated[int, Field(ge=1, strict=True)] | None = None
    """n:m: how many of each m are kept"""
    m: Annotated[int, Field(ge=2, strict=True)] | None = None
    """n:m: of how many neighbours, of one output unit and kernel position; what is left at the inputs' end stays"""
    size: Annotated[tuple[int, int], BeforeValidator(_rows_by_columns), WithJsonSchema(_SIZE_SCHEMA)] | None = None
    """block: rows by columns; the last blocks of a weight are smaller where its sizes are no multiples"""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "reduce" in value:
            raise ValueError("unknown key 'reduce'; did you mean 'aggregate'?")
        if not isinstance(value, str):
            return value
        for sign, name, keys in ((":", "n:m", ("n", "m")), ("x", "block", ("rows", "columns"))):
            if found := re.fullmatch(rf"([0-9]+){sign}([0-9]+)", value):
                numbers = tuple(map(int, found.groups()))
                return {"name": name} | (
                    {"size": numbers} if name == "block" else dict(zip(keys, numbers, strict=True))
                )
        return {"name": value}

    @model_validator(mode="after")
    def _pattern_or_size(self) -> GranularitySettings:
        for key, owner in _OWNERS.items():
            if getattr(self, key) is not None and self.name != owner:
                raise ValueError(f"'{key}' belongs to granularity {owner}, not to {self.name}")
        if self.name == "block" and self.size is None:
            raise ValueError("granularity block needs a size, {name: block, size: [4, 1]} or in short '4x1'")
        if self.name == "n:m" and (self.n is None or self.m is None):
            raise ValueError("granularity n:m needs n and m, {name: 'n:m', n: 2, m: 4} or in short '2:4'")
        if self.n is not None and self.m is not None and self.n >= self.m:
            guess = f"; did you mean {self.m}:{self.n}?" if self.n > self.m else ""
            raise ValueError(f"{self.n}:{self.m} removes nothing: n of each m are kept, so n is less than m{guess}")
        return self

    @property
    def share(self) -> Fraction | None:
        """The fraction that n:m removes of its groups; None for other granularities."""
        return None if self.n is None or self.m is None else 1 - Fraction(self.n, self.m)

    @property
    def short(self) -> str:
        """The settings in short: the name, 2:4, or 4x1."""
        if self.size is not None:
            return "x".join(map(str, self.size))
        return self.name if self.m is None else f"{self.n}:{self.m}"

    @property
    def choices(self) -> str:
        """The candidates that a sparsity counts: "entries", "units" or "blocks"."""
        return {"unit": "units", "block": "blocks"}.get(self.name, "entries")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = super().__get_pydantic_json_schema__(core, handler)
        return {"anyOf": [*schema["anyOf"], {"type": "string", "pattern": "^[0-9]+[:x][0-9]+$"}]}
