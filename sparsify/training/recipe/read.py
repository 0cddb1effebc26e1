"""A recipe: one YAML file that declares model, data, training and pruning. Read strictly, without torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, ValidationError
from ruamel.yaml import YAML

from ...arguments import PATH, takes
from ...errors import SparsifyError, check_regular, nearest_file, one_line
from ...models import FROM_PYTHON, check_model_name
from ...pruning.settings.prune import Pruning
from ...validation import Source, first_problem, known_keys
from .lookups import check_data_name, check_optimizer_name, check_source, check_trackers
from .plugin import Plugin, as_plugin
from .settings import DataSettings, ModelSettings, PluginSettings, TrainSettings
from .sharding import check_shard
from .values import ByName, Settings, Word
from .yaml_lines import MOST_CHARACTERS, parse_value, parse_yaml


class Recipe(Settings):
    """A whole recipe: frozen, validated; `prune` is None for dense training."""

    name: Word = "recipe"
    """what a run is called; by default the file's name"""
    model: Annotated[ModelSettings, ByName()]
    """the network; its name alone stands for its defaults"""
    data: Annotated[DataSettings, ByName()] = Field(default_factory=lambda: DataSettings())
    """the images; the data set's name alone stands for its defaults"""
    train: TrainSettings = Field(default_factory=lambda: TrainSettings())
    """how the network is trained"""
    prune: Pruning | None = None
    """what is pruned, how far and when; without it training is dense"""

    plugin: PluginSettings | None = None
    """the file that defines names in it, as kept in a run's recipe; it is given with --plugin"""

    _source: Source = PrivateAttr(default_factory=lambda: Source("recipe", {}))
    _datasets: Mapping[str, Callable[..., Any]] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal, wherever they were written."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    def where(self, *keys: str | int) -> str:
        """Return the place of a key: file, line and key."""
        return self._source.where(keys)

    @property
    def own_data(self) -> Callable[[str | None], Any] | None:
        """The plugin's function that the data set's name stands for, if it is one of a plugin's."""
        return self._datasets.get(self.data.name)

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML from which `read_recipe` reads an equal recipe.

        A criterion given as a Python function is written as its qualified name, which cannot be read back: YAML
        never names code.
        """
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.width = 4096
        # Unescaped, some characters (a next-line mark) are line breaks to a YAML reader.
        yaml.allow_unicode = False
        stream = io.StringIO()
        yaml.dump(_plain(self.model_dump()), stream)
        return stream.getvalue()


@takes(path=PATH, overrides=Iterable, plugin=(Plugin, *PATH, NoneType))
def read_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, plugin: Plugin | str | PathLike[str] | None = None
) -> Recipe:
    """Return the recipe in the YAML file `path`, with the overrides ("prune.sparsity=0.9") applied in order.

    Names of models, data sets and the like are checked too (`check_names`), first in `plugin`, a Python file that is
    executed (docs/plugins.md). Raises SparsifyError, one line with file, line, key, what was given, what is allowed and
    the nearest guess.
    """
    path = Path(path)
    tree, lines = parse_yaml(_read_text(path), str(path))
    source = Source(str(path), lines)
    if not isinstance(tree, Mapping):
        given = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise SparsifyError(
            f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}; this is {given}"
        )
    return _validated(dict(tree), overrides, source, path.stem, plugin=as_plugin(plugin))


def parse_recipe(
    recipe: Mapping[str, Any] | Recipe, overrides: Sequence[str] = (), *, plugin: Plugin | None = None
) -> Recipe:
    """Return the recipe that a mapping declares, checked as `read_recipe` does except for the names in it."""
    tree = recipe.model_dump() if isinstance(recipe, Recipe) else dict(recipe)
    return _validated(tree, overrides, Source("recipe", {}), "recipe", check=False, plugin=plugin)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe (draft 2020-12), for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def check_names(recipe: Recipe, source: Source | None = None) -> None:
    """Check every name in `recipe` (model, data set, optimiser) and every file it starts from, without torch.

    Raises SparsifyError with the nearest guess; `source` has the place of each key.
    """
    where = (source or Source("recipe", {})).where
    if not recipe.model.name.startswith(FROM_PYTHON):
        check_model_name(recipe.model.name, where=where(("model", "name")))
    if not recipe.data.name.startswith(FROM_PYTHON) and recipe.own_data is None:
        check_data_name(recipe.data, where=where(("data", "name")))
    check_optimizer_name(recipe.train.optimizer.name, where=where(("train", "optimizer", "name")))
    check_trackers(recipe.train.trackers, where=where(("train", "trackers")))
    if recipe.model.checkpoint is not None:
        check_source(recipe.model.checkpoint, where=where(("model", "checkpoint")))
    if recipe.model.masks is not None:
        check_source(recipe.model.masks, where=where(("model", "masks")))


def _validated(
    tree: dict[str, Any],
    overrides: Sequence[str],
    source: Source,
    name: str,
    *,
    check: bool = True,
    plugin: Plugin | None = None,
) -> Recipe:
    for override in overrides:
        _override(tree, override, source)
    tree.setdefault("name", name)
    _with_plugin(tree, source, plugin)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise first_problem(error, Recipe, tree, source) from None
    recipe._datasets = plugin.datasets if plugin is not None else {}
    if recipe.model.masks is not None and recipe.prune is not None:
        raise SparsifyError(
            f"{source.where(('model', 'masks'))}: given masks stay as they are; leave out the key 'prune'"
        )
    check_shard(recipe, source.where)
    if check:
        check_names(recipe, source)
    recipe._source = source
    return recipe


def _with_plugin(tree: dict[str, Any], source: Source, plugin: Plugin | None) -> None:
    """Add a plugin's functions, its name and its hash to the tree; SparsifyError if the tree records another plugin."""
    given = tree.get("plugin")
    kept = given if isinstance(given, Mapping) else {}
    if plugin is None:
        if kept:
            name = one_line(kept.get("name"), 200)
            raise SparsifyError(f"{source.where(('plugin',))}: names in it come from a plugin, {name}: --plugin FILE")
        return
    if kept.get("sha256", plugin.sha256) != plugin.sha256:
        raise SparsifyError(
            f"{source.where(('plugin', 'sha256'))}: it was made with another plugin: {kept.get('name')} of SHA-256 "
            f"{str(kept['sha256']):.12}..., and {plugin.name} has {plugin.sha256:.12}...; a run resumes with its own"
        )
    if given is None or kept:
        tree["plugin"] = {"name": plugin.name, "sha256": plugin.sha256}
    if "prune" in tree:
        tree["prune"] = plugin.filled(tree["prune"], lambda *keys: source.where(("prune", *keys)))


def _override(tree: dict[str, Any], override: str, source: Source) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    label = f"--set {override}"
    if not equals or not all(keys):
        raise SparsifyError(f"{label}: an override is written section.key=value, e.g. prune.sparsity=0.9")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        path = tuple(keys[: depth + 1])
        child = node.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str) and "name" in known_keys(Recipe, path, child):
            child = {"name": child}
        if not isinstance(child, Mapping):
            raise SparsifyError(f"{label}: {'.'.join(path)} is {child!r}, which has no keys")
        node[key] = dict(child)
        node = node[key]
        source.mark(path, label, only_new=True)
    node[keys[-1]] = parse_value(text, label)
    source.mark(tuple(keys), label)


def _read_text(path: Path) -> str:
    try:
        check_regular(path, piped=True)
        with path.open(encoding="utf-8") as file:
            # One character more than is allowed, which the parser reports, however long the file is.
            return file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        guess = nearest_file(path, "*.y*ml")
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise SparsifyError(f"{path}: no such recipe{hint}") from None
    except UnicodeDecodeError:
        raise SparsifyError(f"{path}: not YAML: the file is not UTF-8 text") from None
    except OSError as error:
        raise SparsifyError(f"{path}: cannot be read ({error.strerror})") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value
