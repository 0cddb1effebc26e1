"""The `prune` section of a recipe: what to prune, by what, how much and when. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from ..errors import SparsifyError, nearest, unknown
from .times import TimeValue, parse_time, steps_in

__all__ = ["Pruning", "Schedule", "TimeValue", "decimal", "parse_pruning", "parse_time", "steps_in"]

# The names are written here as well as in the tables they select from, because those need torch.
CRITERION_NAMES = ("magnitude", "random", "snip")
GRANULARITY_NAMES = ("weight", "unit")
SCOPE_NAMES = ("global", "layer", "filter", "erk")
SCHEDULE_NAMES = ("one_shot", "linear", "cubic", "constant", "cyclic")

DEFAULT_END = 0.8
DEFAULT_EVERY = 0.005


def decimal(number: float) -> Fraction:
    """Return the decimal that `number` was written as: 0.29 is 29/100, although the float 0.29 is a little less."""
    return Fraction(repr(float(number)))


def _one_of(what: str, names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(str(unknown(what, value, names)))
        return value

    return AfterValidator(check)


def _fraction_removed(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no sparsity; it is the fraction removed, in [0, 1]")
    return value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _enum(names: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


Sparsity = Annotated[
    float, BeforeValidator(_fraction_removed), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
GranularityName = Annotated[str, _one_of("granularity", GRANULARITY_NAMES), _enum(GRANULARITY_NAMES)]
ScopeName = Annotated[str, _one_of("scope", SCOPE_NAMES), _enum(SCOPE_NAMES)]
ScheduleName = Annotated[str, _one_of("schedule", SCHEDULE_NAMES), _enum(SCHEDULE_NAMES)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Named(_Section):
    """A section that may be written as its name alone: `schedule: one_shot` is `schedule: {name: one_shot}`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [section["properties"]["name"], dict(section)]}


class CriterionSettings(_Named):
    """By what weights are compared."""

    function: SkipJsonSchema[Callable[..., Any] | None] = Field(default=None, exclude=True, repr=False)
    """from Python: a function of the user's own, see sparsify.pruning.criteria; `name` is then free"""
    name: Annotated[str, _enum(CRITERION_NAMES)]
    """magnitude |w|, random, or snip |w * dL/dw| (Lee et al. 2019)"""

    @model_validator(mode="before")
    @classmethod
    def _function_itself(cls, value: Any) -> Any:
        if callable(value):
            return {"function": value, "name": getattr(value, "__name__", type(value).__name__)}
        return value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        if info.data.get("function") is None and name not in CRITERION_NAMES:
            raise ValueError(str(unknown("criterion", name, CRITERION_NAMES)))
        return name


class GranularitySettings(_Named):
    """What is kept or removed together."""

    name: GranularityName
    """weight: each by itself; unit: all weights of an output channel or feature"""


class Schedule(_Named):
    """How the sparsity moves between `begin` and `end`."""

    name: ScheduleName
    """one_shot at `begin`, linear, cubic (Zhu and Gupta 2017), constant, or cyclic"""
    initial_sparsity: Sparsity | None = None
    """linear, cubic: the sparsity at `begin`; default 0"""
    ramp: Literal["half", "full"] | None = None
    """cyclic: half (default) starts every cycle dense, s * sin(pi/2 * (u mod 1)); full goes up and comes down,
    s * |sin(pi/2 * u)|; u = cycles elapsed"""
    cycles: Annotated[int, Field(ge=1, strict=True)] | None = None
    """cyclic: the number of cycles between `begin` and `end`, the last included"""
    cycle_length: TimeValue | None = None
    """cyclic: the length of a cycle, instead of their number; the last one ends at `end`"""

    @model_validator(mode="after")
    def _keys_of_this_schedule(self) -> Schedule:
        owners: dict[str, tuple[str, ...]] = {"initial_sparsity": ("linear", "cubic")}
        owners |= {key: ("cyclic",) for key in ("ramp", "cycles", "cycle_length")}
        for key, names in owners.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ValueError(f"'{key}' belongs to schedule {' or '.join(names)}, not to {self.name}")
        if self.name == "cyclic" and (self.cycles is None) == (self.cycle_length is None):
            raise ValueError("a cyclic schedule takes either 'cycles' (their number) or 'cycle_length'")
        if self.ramp == "full" and self.cycles is not None and self.cycles % 2 == 0:
            raise ValueError(
                f"ramp 'full' must end on a peak, after an odd number of cycles: {self.cycles} given, "
                f"{self.cycles - 1} or {self.cycles + 1} would do"
            )
        return self


class Pruning(_Section):
    """The `prune` section of a recipe: which weights are removed, by which criterion, how many and when."""

    criterion: CriterionSettings = CriterionSettings(name="magnitude")
    """by what weights are compared"""
    granularity: GranularitySettings = GranularitySettings(name="weight")
    """what is kept or removed together"""
    scope: ScopeName = "layer"
    """over which set the sparsity holds: global, each layer, each filter (output unit), or Erdos-Renyi-Kernel shares"""
    sparsity: Sparsity
    """the fraction removed at the end, in [0, 1]"""
    ignore: Names = ()
    """weights or modules left dense: names, globs, `first` and `last` (in order of registration)"""
    schedule: Schedule = Schedule(name="one_shot")
    """how the sparsity moves between `begin` and `end`"""
    begin: TimeValue = 0.0
    """when pruning begins"""
    end: TimeValue | None = None
    """when the last update happens; default 0.8 of training, for one_shot `begin`"""
    every: TimeValue | None = None
    """masks are updated on every multiple of this; default 0.005 of training"""
    after_cycles: Literal["union", "last"] | None = None
    """cyclic: the last cycle prunes the union of the masks at the others' ends, or (default) is like the others"""
    regrow: Literal[True, False, "before_union"] = True
    """whether a removed weight may return at the next update by its stored value; before_union: until the union's
    cycle begins; the reset at a cycle's end brings all back in any case"""
    masked_weights: Literal["decay", "freeze", "zero"] = "decay"
    """what becomes of removed weights' stored values: left to momentum and weight decay, kept as they are, or zeroed"""

    @model_validator(mode="after")
    def _settings_that_fit_together(self) -> Pruning:
        if self.granularity.name == "unit" and self.scope == "filter":
            raise ValueError("granularity 'unit' with scope 'filter' makes no sense: a unit is a filter; use 'layer'")
        if self.after_cycles is not None and self.schedule.name != "cyclic":
            raise ValueError(f"'after_cycles' belongs to schedule cyclic, not to {self.schedule.name}")
        if self.schedule.name == "one_shot" and self.end is not None and parse_time(self.end) != parse_time(self.begin):
            raise ValueError("schedule 'one_shot' happens at 'begin'; leave 'end' out")
        if self.regrow == "before_union" and self.after_cycles != "union":
            raise ValueError("regrow 'before_union' needs 'after_cycles: union'")
        if self.schedule.ramp == "full" and self.regrow is False:
            raise ValueError("ramp 'full' comes down again, which needs 'regrow: true'")
        least = 3 if self.schedule.ramp == "full" else 2
        if self.after_cycles == "union" and self.schedule.cycles is not None and self.schedule.cycles < least:
            raise ValueError(f"a union needs at least {least} cycles, the last included; {self.schedule.cycles} given")
        return self


def parse_pruning(pruning: Pruning | Mapping[str, Any]) -> Pruning:
    """Return `pruning` as checked settings. Raises SparsifyError that names the first wrong key, in one line."""
    if isinstance(pruning, Pruning):
        return pruning
    if not isinstance(pruning, Mapping):
        raise SparsifyError(f"pruning: expected settings or a dict of them, not {type(pruning).__name__}")
    try:
        return Pruning.model_validate(dict(pruning))
    except ValidationError as error:
        raise SparsifyError(_first_mistake(error)) from None


def _first_mistake(error: ValidationError) -> str:
    # A missing key is often explained by an unknown one.
    details = min(error.errors(include_url=False), key=lambda detail: detail["type"] == "missing")
    place = [str(part) for part in details["loc"]]
    message = str(details.get("ctx", {}).get("error", "")) or details["msg"]
    if details["type"] == "extra_forbidden":
        sections: dict[str, type[_Section]] = {
            "criterion": CriterionSettings,
            "granularity": GranularitySettings,
            "schedule": Schedule,
        }
        owner = sections[place[0]] if len(place) > 1 else Pruning
        guess = nearest(place[-1], owner.model_fields)
        message = "unknown key" + (f"; did you mean '{guess}'?" if guess else "")
    if details["type"] == "missing":
        message = "missing key"
    return f"{'.'.join(['pruning', *place])}: {message}"
