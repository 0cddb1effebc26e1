"""The runs of a sweep: `prune.sparsity=[0.9, 0.95]` and seeds become runs, each a recipe in its own folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import SparsifyError
from ..training.recipe.read import Recipe, read_recipe
from ..training.recipe.yaml_lines import parse_value

_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Varied:
    """A key of the recipe and the values that it takes, as in YAML."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a name made of its varied values, its recipe and its folder."""

    name: str
    recipe: Recipe
    folder: Path


def parse_varied(text: str) -> Varied:
    """Return the key and values of `KEY=[VALUE, ...]`; raises SparsifyError for anything else."""
    key, equals, written = text.partition("=")
    key = key.strip()
    problem = f"--vary {text}: written KEY=[VALUE, ...], as prune.sparsity=[0.9,0.95]"
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise SparsifyError(problem)
    values = parse_value(written, f"--vary {text}")
    if not isinstance(values, list) or not values:
        raise SparsifyError(problem)
    if key == "train.seed":
        raise SparsifyError("--vary train.seed: seeds are varied with --seeds")
    shown = tuple(json.dumps(_plain(value)) for value in values)
    if len({*shown}) < len(shown):
        raise SparsifyError(f"--vary {text}: a value is there twice")
    return Varied(key, shown)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of "3" (1, 2, 3) or "1,5,7"; raises SparsifyError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise SparsifyError(f"--seeds {text}: a number of seeds (3 means 1, 2 and 3), or the seeds themselves: 1,5,7")
    seeds = tuple(map(int, parts)) if len(parts) > 1 else tuple(range(1, int(parts[0]) + 1))
    if not seeds or len({*seeds}) < len(seeds):
        raise SparsifyError(f"--seeds {text}: at least one seed, each once")
    return seeds


def sweep_runs(
    path: str | Path, varied: Sequence[Varied], seeds: Sequence[int], folder: Path, overrides: Sequence[str] = ()
) -> list[SweepRun]:
    """Return the runs of the product, ordered by seed, so that pairs can be compared early.

    Raises SparsifyError for a mistake in any recipe.
    """
    keys = [one.key for one in varied]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise SparsifyError(f"--vary {repeated[0]}: given twice; put all its values in one list")
    found = []
    for seed in seeds:
        for values in product(*(one.values for one in varied)):
            own = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
            recipe = read_recipe(path, [*overrides, *own, f"train.seed={seed}"])
            name = "-".join([*(_short(key, value) for key, value in zip(keys, values, strict=True)), f"seed={seed}"])
            found.append(SweepRun(name, recipe, folder / _folder_name(name)))
    return found


def _short(key: str, value: str) -> str:
    return f"{key.rpartition('.')[2]}={json.loads(value)}"


def _folder_name(name: str) -> str:
    """Return a folder name that is unique for `name`, whatever characters its values contain."""
    plain = re.sub(r"[^\w.=+-]+", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= _LONGEST:
        return name
    return f"{plain[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _plain(value: Any) -> Any:
    """Return a value as JSON-serialisable types; fractions such as 1/3 are already text in YAML."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
