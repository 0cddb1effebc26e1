"""Which settings of a pruning work on a model that fully_shard has cut. Needs no torch."""

from __future__ import annotations

from .prune import Pruning

# Criteria that score each entry by itself, or whose gradients fully_shard sums.
ON_SHARDS = ("magnitude", "random", "snip", "movement")


def not_on_shards(pruning: Pruning) -> str | None:
    """Return the first setting that does not work on sharded weights, None if all of them do; rules are not looked at.

    Whether units are coupled depends on the model, and is not judged here.
    """
    criterion, size = pruning.criterion, pruning.granularity.size
    wrong = {
        f"criterion '{criterion.name}' (those are {', '.join(ON_SHARDS)})": criterion.function is not None
        or criterion.name not in ON_SHARDS,
        "of: bytes": pruning.of == "bytes",
        "least and most": pruning.least is not None or pruning.most is not None,
        "blocks of several rows": size is not None and size[0] > 1,
    }
    return next((what for what, found in wrong.items() if found), None)
