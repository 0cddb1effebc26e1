"""From settings and a model to what the pruning chooses among."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import SparsifyError
from ..surgery.fold import fold
from ..surgery.masks import masked_weights
from .choices import Choices, EntryChoices
from .costs import COSTS, Term, at_prices, forward_milliseconds
from .granularity import GRANULARITIES
from .scopes import SCOPES
from .settings import Pruning
from .targets import pruned_weights
from .unit_choices import UnitChoices
from .units import learn_groups

if TYPE_CHECKING:
    from ..surgery.channels import Channels


def make_choices(model: nn.Module, pruning: Pruning, example_input: Any, channels: Channels | None) -> Choices:
    """Return the choices of a pruning of `model`: entries, rows of weights, or groups of channels.

    Units are groups where there are `channels` or an `example_input` to find them with; every parameter that produces
    them then carries a mask. Raises SparsifyError if nothing can be pruned, or for settings that need groups.
    """
    names = pruned_weights(model, pruning.ignore)
    scope, settings = SCOPES[pruning.scope], pruning.granularity
    if settings.name == "unit" and (channels is not None or example_input is not None):
        if channels is None:
            from ..surgery.channels import analyse

            channels = analyse(fold(model), example_input, heads=settings.heads or "whole")
        per = _per(model, pruning, example_input, channels)
        of = None if pruning.of in (None, "units") else COSTS[str(pruning.of)](model, channels)
        return UnitChoices(learn_groups(model, channels, names), scope, settings.aggregate or "mean", per, of)
    needing: dict[str, str | None] = {"criterion.per": pruning.criterion.per, "of": pruning.of}
    needing |= {"granularity.aggregate": settings.aggregate, "granularity.heads": settings.heads}
    for key, value in needing.items():
        if value is not None and value != "units":
            raise SparsifyError(
                f"pruning.{key}: '{value}' needs to know which units belong together: give Pruner an example_input"
            )
    masked = masked_weights(model)
    return EntryChoices(GRANULARITIES[settings.name], scope, {name: masked[name] for name in names})


def _per(model: nn.Module, pruning: Pruning, example_input: Any, channels: Channels) -> Sequence[Term] | None:
    if pruning.criterion.per is None:
        return None
    if pruning.criterion.per != "milliseconds":
        return COSTS[pruning.criterion.per](model, channels)
    if example_input is None:
        raise SparsifyError("pruning.criterion.per: milliseconds are measured: give Pruner an example_input")
    names = [operation.name for operation in channels.operations]
    return at_prices(channels, forward_milliseconds(fold(model), names, example_input))
