"""The sections within a recipe's `prune` section: criterion, granularity, schedule. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

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

from ...errors import unknown
from .exact import Sparsity, exact
from .times import TimeValue

decimal = exact  # its name in the first versions

# The names are written here as well as in the tables they select from, because those need torch.
CRITERION_NAMES = (
    *("magnitude", "random", "snip", "grasp", "synflow", "taylor", "fisher", "movement", "wanda", "lamp"),
    *("fpgm", "bn_scale"),
)
DATA_CRITERIA = ("snip", "grasp", "taylor", "fisher", "movement", "wanda")
UNIT_CRITERIA = ("fpgm", "bn_scale")  # which score all entries of a unit alike
GRANULARITY_NAMES = ("weight", "unit")
SCOPE_NAMES = ("global", "layer", "filter", "erk")
SCHEDULE_NAMES = ("one_shot", "linear", "cubic", "constant", "cyclic")


def _one_of(what: str, names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(str(unknown(what, value, names)))
        return value

    return AfterValidator(check)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _enum(names: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
GranularityName = Annotated[str, _one_of("granularity", GRANULARITY_NAMES), _enum(GRANULARITY_NAMES)]
ScopeName = Annotated[str, _one_of("scope", SCOPE_NAMES), _enum(SCOPE_NAMES)]
ScheduleName = Annotated[str, _one_of("schedule", SCHEDULE_NAMES), _enum(SCHEDULE_NAMES)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Named(Section):
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
    """from Python: a function of the user's own, see sparsify.pruning.criteria.table; `name` is then free"""
    name: Annotated[str, _enum(CRITERION_NAMES)]
    """magnitude |w|, random, snip |w * dL/dw| (Lee et al. 2019), grasp w * Hg (Wang et al. 2020), synflow, the share in
    the flow through the positive network (Tanaka et al. 2020), taylor (w * dL/dw)^2 by batch (Molchanov et al. 2019),
    fisher, w^2 / 2 times the mean squared gradient of a sample (Theis et al. 2018), movement -w * dL/dw (Sanh et al.
    2020), wanda |w| times the norm of its inputs (Sun et al. 2024), lamp w^2 / the sum of the squares that are as large
    (Lee et al. 2021); for units fpgm, the distances to the others (He et al. 2019), or bn_scale, the scale in the norm
    that follows (Liu et al. 2017)"""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """grasp: the model's output is divided by it before the loss; default 200"""
    rounds: Annotated[int, Field(ge=1, strict=True)] | None = None
    """one_shot: in how many rounds of scoring the target is reached, the density falling by the same factor in each;
    default 100 for synflow, 1 for the others"""
    per: Literal["flops", "parameters", "milliseconds"] | None = None
    """granularity unit: scores are divided by what the unit's removal saves: flops, the multiply-adds of a forward pass
    (van Amersfoort et al. 2020), parameters, or its milliseconds, measured"""

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

    @model_validator(mode="after")
    def _keys_of_this_criterion(self) -> CriterionSettings:
        if self.temperature is not None and self.name != "grasp":
            raise ValueError(f"'temperature' belongs to criterion grasp, not to {self.name}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What is set besides the name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class GranularitySettings(_Named):
    """What is kept or removed together."""

    name: GranularityName
    """weight: each by itself; unit: all that makes an output channel or feature, with those that it is tied to"""
    aggregate: Literal["mean", "sum", "max", "l2"] | None = None
    """unit: a unit's score: the mean (default) or maximum of the mean scores of its rows in each weight, or the sum or
    L2 norm over all entries of these"""
    heads: Literal["whole", "size"] | None = None
    """unit: what goes of attention: whole heads (default), or entries of all heads' queries and keys, or values"""

    @model_validator(mode="after")
    def _keys_of_this_granularity(self) -> GranularitySettings:
        for key in ("aggregate", "heads"):
            if getattr(self, key) is not None and self.name != "unit":
                raise ValueError(f"'{key}' belongs to granularity unit, not to {self.name}")
        return self


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
