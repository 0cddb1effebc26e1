"""The rules of a prune section: other settings for some of the weights. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .exact import Amount, Sparsity
from .granularity_settings import GranularitySettings
from .sections import CriterionSettings, Names, ScopeName, Section


class WeightRule(Section):
    """Other settings for the weights that it matches and no rule before it does."""

    match: Annotated[Names, Field(min_length=1)]
    """the weights, written as in `ignore`"""
    ignore: Literal[True] | None = None
    """true: they stay dense"""
    sparsity: Sparsity | None = None
    """the fraction of them that is removed at the end"""
    amount: Amount | None = None
    """in place of `sparsity`: how many entries, blocks or units go from each group of the scope"""
    granularity: GranularitySettings | None = None
    """what of them is kept or removed together"""
    criterion: CriterionSettings | None = None
    """by what they are compared"""
    scope: ScopeName | None = None
    """over which set of them the sparsity holds; global: all weights of this rule"""

    @model_validator(mode="after")
    def _says_one_thing(self) -> WeightRule:
        others = [key for key, value in self if value is not None and key not in ("match", "ignore")]
        if self.ignore and others:
            raise ValueError(f"'ignore: true' leaves them dense, so '{others[0]}' has no effect; leave one out")
        if not self.ignore and not others:
            raise ValueError("says nothing but 'match'; give sparsity, amount, granularity, criterion, scope or ignore")
        if self.criterion is not None and self.criterion.per == "milliseconds":
            raise ValueError("'criterion.per: milliseconds' looks at the whole model and takes no rules")
        return self
