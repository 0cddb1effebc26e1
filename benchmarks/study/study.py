"""A study: models, methods, sparsities and seeds in one YAML file, and the recipe of each run that they make."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.errors import SparsifyError, nearest
from sparsify.training.recipe.read import Recipe, check_names, parse_recipe
from sparsify.training.recipe.yaml_lines import parse_yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_KEYS = {"name", "about", "epochs", "budget", "seeds", "sparsities", "common", "models", "methods", "compare"}
_COMPARE = {"unions", "baselines", "gradual"}
_STEPS = re.compile(r"(\d+)it")


@dataclass(frozen=True)
class Run:
    """One training of a study; `sparsity` is None for dense training, `hash` identifies its recipe without the seed."""

    study: str
    model: str
    method: str
    sparsity: float | None
    budget: float
    seed: int
    hash: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """The run's name in logs, unique in the study."""
        return "-".join(str(part) for part in (self.model, self.method, self.sparsity, self.seed) if part is not None)

    @property
    def key(self) -> tuple[str, ...]:
        """The key of a row of runs.csv."""
        return (self.study, self.model, self.method, self.hash, str(self.seed))


@dataclass(frozen=True)
class Study:
    """A study's file, and its runs in the queue's order.

    `unions` and `baselines` are the methods of the conclusion, each union against the better baseline; `gradual`
    is the method whose final masks are looked for in unions.
    """

    name: str
    file: str
    about: str
    budget: float
    epochs: int
    seeds: tuple[int, ...]
    sparsities: tuple[float, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    unions: tuple[str, ...]
    baselines: tuple[str, ...]
    gradual: str
    runs: tuple[Run, ...]


def read_study(
    path: Path, *, budget: float | None = None, data_dir: str | None = None, device: str | None = None
) -> Study:
    """Return the study in a YAML file, or in one of this folder by its name.

    `budget` scales the epochs and with them every length in steps; lengths in parts of training follow by themselves.
    Raises SparsifyError for keys that are missing or unknown and recipes with mistakes.
    """
    path = path if path.exists() else HERE / path
    if not path.exists():
        raise SparsifyError(f"{path.name}: no such study; there are {', '.join(p.name for p in HERE.glob('*.yaml'))}")
    tree, _ = parse_yaml(path.read_text(), str(path))
    _check(tree, path)
    budget = float(tree.get("budget", 1) if budget is None else budget)
    if budget <= 0:
        raise SparsifyError(f"budget: {budget:g} is not above 0; 1 trains for the {tree['epochs']} epochs of the study")
    epochs = max(1, round(tree["epochs"] * budget))
    free = {"data": {"dir": data_dir} if data_dir else {}, "train": {"device": device} if device else {}}
    return Study(
        name=tree["name"],
        file=path.name,
        about=tree["about"],
        budget=budget,
        epochs=epochs,
        seeds=tuple(tree["seeds"]),
        sparsities=tuple(tree["sparsities"]),
        models=tuple(tree["models"]),
        methods=tuple(tree["methods"]),
        unions=tuple(tree["compare"]["unions"]),
        baselines=tuple(tree["compare"]["baselines"]),
        gradual=tree["compare"]["gradual"],
        runs=tuple(_runs(tree, epochs, budget, free, path)),
    )


def _check(tree: Any, path: Path) -> None:
    given = tree.keys() if isinstance(tree, Mapping) else set()
    if given - _KEYS or _KEYS - given - {"budget", "common"}:
        raise SparsifyError(f"{path}: a study has the keys {', '.join(sorted(_KEYS))}; this has {', '.join(given)}")
    compare = tree["compare"]
    if not isinstance(compare, Mapping) or compare.keys() != _COMPARE:
        raise SparsifyError(f"{path}: compare has the keys {', '.join(sorted(_COMPARE))}")
    for method in [*compare["unions"], *compare["baselines"], compare["gradual"]]:
        if method not in tree["methods"]:
            guess = nearest(method, tree["methods"])
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise SparsifyError(f"{path}: compare: there is no method '{method}'{hint}")


def _runs(tree: Mapping[str, Any], epochs: int, budget: float, free: dict[str, Any], path: Path) -> Iterator[Run]:
    """Yield all runs of a seed before the next seed's, so that pairs of methods can be compared early."""
    for seed in tree["seeds"]:
        for place, sparsity in enumerate(tree["sparsities"]):
            for model, section in tree["models"].items():
                for method, overlay in tree["methods"].items():
                    merged = _recipe(tree, section, overlay or {}, model)
                    dense = merged.get("prune") is None
                    if dense and place:
                        continue
                    merged["name"] = tree["name"]
                    merged = _scaled(merged, epochs / tree["epochs"])
                    merged = merge(merged, {"train": {"epochs": epochs}})
                    if not dense:
                        merged = merge(merged, {"prune": {"sparsity": sparsity}})
                    digest = _hash(merged)
                    merged = merge(merged, free | {"train": {**free["train"], "seed": seed}})
                    recipe = _checked(merged, f"{path}: methods.{method}")
                    yield Run(tree["name"], model, method, None if dense else sparsity, budget, seed, digest, recipe)


def _recipe(tree: Mapping[str, Any], section: Any, overlay: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return common settings, overridden by the method's recipe file, if named, and its own settings."""
    merged = dict(tree.get("common") or {})
    if "recipe" in overlay:
        file = ROOT / overlay["recipe"].format(model=model)
        merged = merge(merged, parse_yaml(file.read_text(), str(file))[0])
    own = {key: value for key, value in overlay.items() if key != "recipe"}
    return merge(merged, own | {"model": section})


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` overridden by `over`, section by section; a section of another name replaces the whole."""
    merged: dict[str, Any] = dict(base)
    for key, value in over.items():
        before: Any = merged.get(key)
        sections = isinstance(before, Mapping) and isinstance(value, Mapping)
        alike = sections and value.get("name", before.get("name")) == before.get("name")
        merged[key] = merge(before, value) if alike else value
    return merged


def _scaled(value: Any, factor: float) -> Any:
    """Return a recipe's tree with every length in steps ("5000it") times `factor`, one step at least."""
    if isinstance(value, Mapping):
        return {key: _scaled(item, factor) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scaled(item, factor) for item in value]
    steps = _STEPS.fullmatch(value) if isinstance(value, str) else None
    if steps is None or steps[1] == "0":
        return value
    return f"{max(1, round(int(steps[1]) * factor))}it"


def _hash(tree: Mapping[str, Any]) -> str:
    """Return twelve hex digits of a recipe's keys as written: keys that a later version adds do not change it.

    The seed, the device and the folder of the data do not count.
    """
    train = {key: value for key, value in tree["train"].items() if key not in ("seed", "device")}
    data = {key: value for key, value in tree["data"].items() if key not in ("dir", "workers")}
    text = json.dumps({**tree, "train": train, "data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked(tree: dict[str, Any], where: str) -> Recipe:
    try:
        recipe = parse_recipe(tree)
        check_names(recipe)
    except SparsifyError as error:
        raise SparsifyError(f"{where}: {error}") from None
    return recipe
