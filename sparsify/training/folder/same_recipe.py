"""Whether two recipes are those of one run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import SparsifyError
from ..recipe.read import Recipe, parse_recipe
from ..recipe.yaml_lines import parse_yaml

# Device, data folder, logging, checkpoint interval and sharding do not change a run's results.
FREE = (
    "train.device",
    "train.shard",
    "train.log_every",
    "train.trackers",
    "train.checkpoint.every",
    "train.checkpoint.keep",
    "data.dir",
    "data.workers",
    "plugin.name",
)
_SHOWN = 5


def differences(before: str | None, recipe: Recipe, free: Collection[str] = FREE) -> str:
    """Return the keys in which a run's recipe (`before`, as YAML) and `recipe` differ, with both values; "" if none.

    A key that a later version added counts as its default. `before` is None where it was not kept. Keys in `free` may
    differ.
    """
    if before is None:
        return ""
    # As YAML, where a criterion that is a Python function is its name.
    one, other = flat(parse_yaml(before, "recipe")[0]), flat_recipe(recipe)
    found = []
    for key in sorted(one.keys() | other.keys()):
        if key in free or one.get(key) == other.get(key) or (key not in one and _is_default(recipe, key)):
            continue
        found.append(f"{key} is {one.get(key)} there and {other.get(key)} here")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{'; '.join(found[:_SHOWN])}{more}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe, as its YAML has them, by their dotted keys."""
    return flat(parse_yaml(recipe.to_yaml(), "recipe")[0])


def _is_default(recipe: Recipe, key: str) -> bool:
    tree = recipe.model_dump()
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return False
    node.pop(last, None)
    try:
        default = parse_recipe(tree)
    except SparsifyError:
        return False  # a key without a default
    return flat_recipe(default).get(key) == flat_recipe(recipe).get(key)
