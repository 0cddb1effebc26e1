"""The `prune` section of a recipe: what to prune, by what, how much and when. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ...errors import SparsifyError
from ...validation import Source, first_problem
from .curves import SCHEDULES, is_cyclical
from .exact import Amount, Sparsity, exact
from .granularity_settings import GRANULARITY_NAMES, GranularitySettings
from .sections import (
    CRITERION_NAMES,
    SCHEDULE_NAMES,
    SCOPE_NAMES,
    UNIT_CRITERIA,
    CriterionSettings,
    Names,
    Schedule,
    ScopeName,
    Section,
)
from .times import TimeValue, parse_time, steps_in
from .weight_rules import WeightRule

__all__ = [
    "CRITERION_NAMES",
    "GRANULARITY_NAMES",
    "SCHEDULE_NAMES",
    "SCOPE_NAMES",
    "CriterionSettings",
    "GranularitySettings",
    "Pruning",
    "Schedule",
    "TimeValue",
    "parse_pruning",
    "parse_time",
    "steps_in",
]

DEFAULT_END = 0.8
DEFAULT_EVERY = 0.005
SYNFLOW_ROUNDS = 100  # as in the experiments of Tanaka et al. 2020


def _sparsity_or_granularity(schema: dict[str, Any]) -> None:
    """Let the JSON schema accept a granularity instead of a sparsity, since n:m implies one."""
    schema["anyOf"] = [{"required": [key]} for key in ("sparsity", "amount", "granularity")]


class Pruning(Section):
    """The `prune` section of a recipe: which weights are removed, by which criterion, how many and when."""

    model_config = ConfigDict(json_schema_extra=_sparsity_or_granularity)

    criterion: CriterionSettings = CriterionSettings(name="magnitude")
    """how weights are scored; the lowest scores are removed"""
    granularity: GranularitySettings = GranularitySettings(name="weight")
    """what is kept or removed together"""
    scope: ScopeName = "layer"
    """over which set the sparsity holds: global, each layer, each filter (output unit; of blocks each row of them), or
    Erdos-Renyi-Kernel shares"""
    sparsity: Sparsity = None  # type: ignore[assignment]
    """the fraction removed at the end, in [0, 1], a number or "2/3"; granularity n:m implies it"""
    amount: Amount | None = None
    """in place of `sparsity`: how many entries, blocks or units go from each group of the scope"""
    of: Literal["units", "flops", "parameters", "bytes"] | None = None
    """what the sparsity is a fraction of. Granularity unit: units (default), or the model's multiply-adds or parameters
    (scope global), of which the fewest units that are enough go. Granularity weight: all parameters of the model, or
    the bytes of its dense tensors, of which the tensors of the sparse file have at most what is left"""
    least: Sparsity | None = None
    """scope global: the lowest sparsity that a layer may have at the end; on a ramp the same fraction of it"""
    most: Sparsity | None = None
    """scope global: the highest sparsity that a layer may have; if that leaves too little to remove, less is removed"""
    ignore: Names = ()
    """weights or modules left dense: names, globs, `re:` before a regular expression, names of classes such as Linear,
    `first` and `last` (in order of registration); `name:last` is the module called so"""
    only: Names | None = None
    """the weights or modules that are pruned, written as in `ignore`; by default all; what both match stays dense"""
    rules: tuple[WeightRule, ...] | None = None
    """settings for some of the weights: each weight takes the first rule that matches it, else the settings here"""
    schedule: Schedule = Schedule(name="one_shot")
    """how the sparsity moves between `begin` and `end`"""
    begin: TimeValue = 0.0
    """when pruning begins"""
    end: TimeValue | None = None
    """when the last update happens; default 0.8 of training, for one_shot `begin`"""
    every: TimeValue | None = None
    """time between two mask updates; default 0.005 of training"""
    after_cycles: Literal["union", "last"] | None = None
    """cyclic: union: the last cycle prunes the union of the other cycles' final masks; last (default): it does not"""
    regrow: Literal[True, False, "before_union"] = True
    """whether a removed weight may return at the next update by its stored value; before_union: until the union's
    cycle begins; the reset at a cycle's end brings all back in any case"""
    masked_weights: Literal["decay", "freeze", "zero"] = "decay"
    """values of removed weights: decay: momentum and weight decay act on them; freeze: they stay; zero: set to zero"""
    shrink: Annotated[bool, Field(strict=True)] = False
    """remove channels that no longer influence the output from the model, right after the last update"""

    @model_validator(mode="before")
    @classmethod
    def _sparsity_of_a_pattern(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or {"sparsity", "amount"} & value.keys():
            return value
        if "granularity" not in value:
            return {**value, "sparsity": None}
        try:
            share = GranularitySettings.model_validate(value["granularity"]).share
        except ValidationError:  # report this mistake, and not a missing sparsity, which n:m would have implied
            return {**value, "sparsity": 0}
        return {**value, "sparsity": None if share is None else float(share)}

    @model_validator(mode="after")
    def _settings_that_fit_together(self) -> Pruning:
        self._one_of_sparsity_and_amount()
        self._rules_that_fit()
        if self.granularity.name == "unit" and self.scope == "filter":
            raise ValueError("granularity 'unit' with scope 'filter' makes no sense: a unit is a filter; use 'layer'")
        if self.granularity.share is not None:
            self._settings_that_fit_a_pattern(self.granularity.share)
        if self.criterion.name in UNIT_CRITERIA and self.criterion.function is None and self.granularity.name != "unit":
            raise ValueError(
                f"criterion '{self.criterion.name}' compares units: it needs granularity unit, "
                f"not {self.granularity.short}"
            )
        self._bounds_that_fit()
        of_weights = self.granularity.name == "weight" and self.of in ("parameters", "bytes")
        for key, value in (("criterion.per", self.criterion.per), ("of", None if of_weights else self.of)):
            if value == "bytes":
                raise ValueError(f"'of: bytes' belongs to granularity weight, not to {self.granularity.name}")
            if value is not None and self.granularity.name != "unit":
                raise ValueError(f"'{key}' belongs to granularity unit, not to {self.granularity.name}")
        if self.of in ("flops", "parameters") and self.scope != "global" and not of_weights:
            raise ValueError(
                f"'of: {self.of}' needs scope global: what a unit costs depends on the units of other layers"
            )
        if self.after_cycles is not None and not self.schedule.cyclical:
            owners = " or ".join(name for name, function in SCHEDULES.items() if is_cyclical(function))
            raise ValueError(f"'after_cycles' belongs to schedule {owners}, not to {self.schedule.name}")
        if self.schedule.at_once and self.end is not None and parse_time(self.end) != parse_time(self.begin):
            raise ValueError("schedule 'one_shot' happens at 'begin'; leave 'end' out")
        if not self.schedule.at_once and self.criterion.rounds is not None:
            raise ValueError(
                f"'criterion.rounds' belongs to schedule one_shot; with {self.schedule.name} every update is one round"
            )
        if self.regrow == "before_union" and self.after_cycles != "union":
            raise ValueError("regrow 'before_union' needs 'after_cycles: union'")
        if self.schedule.ramp == "full" and self.regrow is False:
            raise ValueError("ramp 'full' comes down again, which needs 'regrow: true'")
        least = 3 if self.schedule.ramp == "full" else 2
        if self.after_cycles == "union" and self.schedule.cycles is not None and self.schedule.cycles < least:
            raise ValueError(f"a union needs at least {least} cycles, the last included; {self.schedule.cycles} given")
        return self

    def _one_of_sparsity_and_amount(self) -> None:
        if (self.sparsity is None) == (self.amount is None):
            raise ValueError("takes either 'sparsity', a fraction, or 'amount', a number")
        if self.amount is None:
            return
        if self.granularity.share is not None:
            raise ValueError(f"granularity {self.granularity.short} fixes how many are removed; leave 'amount' out")
        if self.scope == "erk":
            raise ValueError("'amount' with scope erk makes no sense: erk shares out a fraction; use layer or global")
        if self.of in ("flops", "parameters", "bytes"):
            raise ValueError(
                f"'amount' counts {self.granularity.choices}, 'of: {self.of}' a fraction of a cost; leave one out"
            )
        if self.schedule.initial_sparsity is not None:
            raise ValueError("'schedule.initial_sparsity' is a fraction and belongs to 'sparsity', not to 'amount'")

    def _settings_that_fit_a_pattern(self, share: Fraction) -> None:
        pattern = self.granularity.short
        if self.scope != "layer":
            raise ValueError(
                f"granularity {pattern} holds in every group of a layer, not in scope '{self.scope}'; use 'layer'"
            )
        if abs(exact(self.sparsity or 0) - share) >= Fraction(1, 200):  # two decimals are enough of 2/3
            raise ValueError(
                f"granularity {pattern} removes {float(share):.4g}, not {float(self.sparsity or 0):g}; "
                "leave 'sparsity' out"
            )

    def _bounds_that_fit(self) -> None:
        if self.least is None and self.most is None:
            return
        name = "least" if self.least is not None else "most"
        if self.scope != "global":
            raise ValueError(f"'{name}' bounds each layer under scope global, not under '{self.scope}'")
        if self.amount is not None or self.of in ("flops", "parameters", "bytes"):
            raise ValueError(f"'{name}' is a sparsity and goes with 'sparsity', without 'amount' and 'of'")
        least, most = exact(self.least or 0), Fraction(1) if self.most is None else exact(self.most)
        if not least <= self.target <= most:
            may_be = f"least {float(least):g} to most {float(most):g}"
            raise ValueError(f"sparsity {float(self.target):g} lies outside of what each layer may have, {may_be}")

    def _rules_that_fit(self) -> None:
        if self.rules is None:
            return
        for key, value in (("of", self.of), ("criterion.per", self.criterion.per)):
            if value in ("flops", "parameters", "bytes", "milliseconds"):
                raise ValueError(f"'{key}: {value}' looks at the whole model and takes no rules")
        for index, rule in enumerate(self.rules):
            try:
                self.under(rule)
            except ValidationError as error:
                detail = error.errors(include_url=False)[0]
                problem = str(detail.get("ctx", {}).get("error", "")) or str(detail["msg"])
                raise ValueError(f"rules.{index} ({', '.join(rule.match)}): {problem}") from None

    def under(self, rule: WeightRule) -> Pruning:
        """Return the settings for the weights of a rule: its own, and these where it has none."""
        own = {key: value for key, value in rule if value is not None and key not in ("match", "ignore")}
        replaced = {"only", "rules", "ignore", "of"}
        if {"sparsity", "amount"} & own.keys() or (rule.granularity is not None and rule.granularity.share is not None):
            replaced |= {"sparsity", "amount"}
        if rule.scope not in (None, "global"):
            replaced |= {"least", "most"}
        kept = {key: value for key, value in self if value is not None and key not in replaced}
        return Pruning.model_validate(kept | own)

    @property
    def target(self) -> Fraction:
        """The exact fraction removed at the end: the sparsity, or that of n:m; 1 with an `amount`."""
        share = self.granularity.share
        if self.amount is not None:
            return Fraction(1)
        return exact(self.sparsity or 0) if share is None else share

    @property
    def rounds(self) -> int:
        """The number of rounds of scoring and removing in which an update reaches its sparsity."""
        if not self.schedule.at_once:
            return 1
        return self.criterion.rounds or (SYNFLOW_ROUNDS if self.criterion.name == "synflow" else 1)


def parse_pruning(pruning: Pruning | Mapping[str, Any]) -> Pruning:
    """Return `pruning` as checked settings. Raises SparsifyError that names the first wrong key, in one line."""
    if isinstance(pruning, Pruning):
        return pruning
    if not isinstance(pruning, Mapping):
        raise SparsifyError(f"pruning: expected settings or a dict of them, not {type(pruning).__name__}")
    try:
        return Pruning.model_validate(dict(pruning))
    except ValidationError as error:
        raise first_problem(error, Pruning, dict(pruning), Source("pruning", {}, joint=".")) from None
