"""Sections within a recipe's `prune` section: criterion and schedule. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from .curves import SCHEDULES, is_cyclical, keys_of, schedules_text
from .exact import Sparsity, exact
from .synonyms import unknown_name
from .times import TimeValue

decimal = exact  # its name in the first versions


class CriterionRow(NamedTuple):
    """A criterion's properties without torch: its text in the help, whether it needs data, the keys it takes."""

    text: str
    needs_data: bool = False
    keys: tuple[str, ...] = ()
    of_units: bool = False  # scores all entries of a unit alike


# The names are repeated here because the tables they select from need torch; a test compares them.
CRITERION_ROWS = {
    "magnitude": CriterionRow("magnitude |w|"),
    "random": CriterionRow("random"),
    "snip": CriterionRow("snip |w * dL/dw| (Lee et al. 2019)", needs_data=True),
    "grasp": CriterionRow("grasp w * Hg (Wang et al. 2020)", needs_data=True, keys=("temperature",)),
    "synflow": CriterionRow("synflow, the share in the flow through the positive network (Tanaka et al. 2020)"),
    "taylor": CriterionRow("taylor (w * dL/dw)^2 by batch (Molchanov et al. 2019)", needs_data=True),
    "fisher": CriterionRow("fisher w^2 / 2 * the mean of g^2 of a sample (Theis et al. 2018)", needs_data=True),
    "movement": CriterionRow("movement -w * dL/dw summed over the steps (Sanh et al. 2020)", needs_data=True),
    "wanda": CriterionRow("wanda |w| * the norm of its inputs (Sun et al. 2024)", needs_data=True),
    "lamp": CriterionRow("lamp w^2 / the sum of all squares of the layer that are as large (Lee et al. 2021)"),
    "fpgm": CriterionRow("fpgm, of a unit its distances to the others (He et al. 2019)", of_units=True),
    "bn_scale": CriterionRow("bn_scale, of a unit the scale in the norm that follows (Liu et al. 2017)", of_units=True),
}
CRITERION_NAMES = tuple(CRITERION_ROWS)
UNIT_CRITERIA = tuple(name for name, row in CRITERION_ROWS.items() if row.of_units)
SCOPE_NAMES = ("global", "layer", "filter", "erk")
SCHEDULE_NAMES = tuple(SCHEDULES)
_CRITERIA_TEXT = ", or ".join(
    (", ".join(row.text for row in list(CRITERION_ROWS.values())[:-1]), list(CRITERION_ROWS.values())[-1].text)
)


def one_of(what: str, names: tuple[str, ...]) -> AfterValidator:
    """Return the annotation of a field that takes one of `names`, which are called `what` in the error."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(str(unknown_name(what, value, names)))
        return value

    return AfterValidator(check)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def enum(names: tuple[str, ...]) -> WithJsonSchema:
    """Return the annotation of a field that is one of `names` in the JSON schema."""
    return WithJsonSchema({"type": "string", "enum": list(names)})


Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
ScopeName = Annotated[str, one_of("scope", SCOPE_NAMES), enum(SCOPE_NAMES)]


class Section(BaseModel):
    """A part of a recipe: immutable, without keys of other names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Named(Section):
    """A section that may be written as its name alone: `schedule: one_shot` is `schedule: {name: one_shot}`."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [section["properties"]["name"], dict(section)]}


class _NamedOrFunction(Named):
    """A section that has a name, or a user's Python function instead."""

    function: SkipJsonSchema[Callable[..., Any] | None] = Field(default=None, exclude=True, repr=False)
    """from Python: a function of the user's own; `name` is then free"""

    @model_validator(mode="before")
    @classmethod
    def _function_itself(cls, value: Any) -> Any:
        if callable(value):
            value = {"function": value}
        if isinstance(value, Mapping) and callable(value.get("function")) and "name" not in value:
            function = value["function"]
            return {**value, "name": getattr(function, "__name__", type(function).__name__)}
        return value


class CriterionSettings(_NamedOrFunction):
    """How weights are scored: the lowest scores are removed first."""

    name: Annotated[str, enum(CRITERION_NAMES), Field(description=_CRITERIA_TEXT)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """grasp: the model's output is divided by it before the loss; default 200"""
    rounds: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = None
    """one_shot: in how many rounds of scoring the target is reached, the density falling by the same factor in each;
    default 100 for synflow, 1 for the others"""
    per: Literal["flops", "parameters", "milliseconds"] | None = None
    """granularity unit: scores are divided by what the unit's removal saves: flops, the multiply-adds of a forward pass
    (van Amersfoort et al. 2020), parameters, or its milliseconds, measured"""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        if info.data.get("function") is None and name not in CRITERION_NAMES:
            raise ValueError(str(unknown_name("criterion", name, CRITERION_NAMES)))
        return name

    @model_validator(mode="after")
    def _keys_of_this_criterion(self) -> CriterionSettings:
        owners = [name for name, row in CRITERION_ROWS.items() if "temperature" in row.keys]
        if self.temperature is not None and self.name not in owners:
            raise ValueError(f"'temperature' belongs to criterion {' or '.join(owners)}, not to {self.name}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The settings besides the name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Schedule(_NamedOrFunction):
    """How the sparsity moves between `begin` and `end`."""

    name: Annotated[str, enum(SCHEDULE_NAMES), Field(description=schedules_text())]
    initial_sparsity: Sparsity | None = None
    """linear, cubic: the sparsity at `begin`; default 0"""
    ramp: Literal["half", "full"] | None = None
    """cyclic: half (default) starts every cycle dense, s * sin(pi/2 * (u mod 1)); full goes up and comes down,
    s * |sin(pi/2 * u)|; u = cycles elapsed"""
    cycles: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = None
    """cyclic: the number of cycles between `begin` and `end`, the last included"""
    cycle_length: TimeValue | None = None
    """cyclic: the length of a cycle, instead of their number; the last one ends at `end`"""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        own = info.data.get("function") is not None
        if own and name in SCHEDULE_NAMES:
            raise ValueError(f"'{name}' is a schedule already; a function of your own needs another name")
        if not own and name not in SCHEDULE_NAMES:
            raise ValueError(str(unknown_name("schedule", name, SCHEDULE_NAMES)))
        return name

    @property
    def curve(self) -> Callable[..., Any]:
        """The function from progress to sparsity."""
        return self.function or SCHEDULES[self.name]

    @property
    def cyclical(self) -> bool:
        """Whether it is cyclical."""
        return is_cyclical(self.curve)

    @property
    def at_once(self) -> bool:
        """Whether everything happens at `begin`."""
        return self.name == "one_shot"

    @model_validator(mode="after")
    def _keys_of_this_schedule(self) -> Schedule:
        for key in ("initial_sparsity", "ramp", "cycles", "cycle_length"):
            if getattr(self, key) is not None and key not in keys_of(self.curve):
                owners = " or ".join(name for name, function in SCHEDULES.items() if key in keys_of(function))
                raise ValueError(f"'{key}' belongs to schedule {owners}, not to {self.name}")
        if self.cyclical and (self.cycles is None) == (self.cycle_length is None):
            raise ValueError(f"a {self.name} schedule takes either 'cycles' (their number) or 'cycle_length'")
        if self.ramp == "full" and self.cycles is not None and self.cycles % 2 == 0:
            raise ValueError(
                f"ramp 'full' must end on a peak, after an odd number of cycles: {self.cycles} given, "
                f"{self.cycles - 1} or {self.cycles + 1} would do"
            )
        return self
