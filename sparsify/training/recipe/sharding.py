"""The settings of a recipe that do not work on a model in parts (`train.shard`). Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import SparsifyError
from ...pruning.settings.prune import Pruning
from ...pruning.settings.shards import not_on_shards

if TYPE_CHECKING:
    from .read import Recipe

# Key of `train` -> the value that does not work, and why not.
_REFUSED = {
    "compile": (True, "a compiled model cannot gather its parts"),
    "channels_last": (True, "parts are along the first dimension of contiguous weights"),
    "precision": ("fp16", "its scaler knows whole gradients only; bf16 works"),
}


def check_shard(recipe: Recipe, where: Callable[[tuple[str | int, ...]], str]) -> None:
    """Raise SparsifyError for settings beside `train.shard: true` that do not work on a model in parts.

    `where` returns the place of a key. The number of processes does not matter: a recipe is right or wrong.
    """
    if not recipe.train.shard:
        return
    for key, (value, reason) in _REFUSED.items():
        if getattr(recipe.train, key) == value:
            shown = str(value).lower()
            raise SparsifyError(f"{where(('train', key))}: {shown} does not go with train.shard: {reason}")
    if recipe.prune is None:
        return
    pruning = recipe.prune
    own = [pruning, *(pruning.under(rule) for rule in pruning.rules or () if not rule.ignore)]
    if what := next(filter(None, map(_refused, own)), None):
        raise SparsifyError(f"{where(('prune',))}: {what} does not go with train.shard; leave one of them out")


def _refused(pruning: Pruning) -> str | None:
    if pruning.shrink:
        return "shrink"
    return "granularity unit" if pruning.granularity.name == "unit" else not_on_shards(pruning)
