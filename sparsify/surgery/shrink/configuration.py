"""Configurations, as those of transformers, that follow a shrink: the numbers a class builds the cut model from.

Nothing in a forward says which number of a configuration a size came from (`intermediate_size` is read when layers are
made). So it is found by building: numbers change, one at a time, in the ratio in which dimensions did, as long as fewer
dimensions differ; of the configurations that build the shapes the first is taken whose model, with the cut weights,
gives the same outputs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...relative_error import relative_error
from ..module_walk import named_modules
from .cuts import Cuts, cut
from .equivalence import LIMITS
from .other_inputs import outputs

Sizes: TypeAlias = frozenset[tuple[str, int, int, int]]  # name, dimension, size that is built, size that is wanted
_MOST = 60  # configurations to build
_STAYS = "no configuration builds it; the cuts in its file tell"


def follow_configurations(model: nn.Module, example_input: Any) -> str:
    """Set, in place, the numbers of a cut model's configurations from which its class builds the same model.

    They become part of the model's cuts. `model` is in evaluation mode. Returns what changed, or that a configuration
    is left as it was; "" where the model has none, or it fits as it is.
    """
    lines = []
    for path, module in _configured(model):
        known = dict(_numbers(module.config))
        first = _differing(module, {}, _shapes(module))
        if first == frozenset():
            continue
        changes = _followed(model, path, module, example_input, known, first)
        shown = ", ".join(f"{name} {known[name]} -> {value}" for name, value in changes.items())
        lines.append(f"{_at(path, 'config')}: {shown or _STAYS}")
    return "; ".join(lines)


def _followed(
    model: nn.Module, path: str, module: Any, example_input: Any, known: Mapping[str, int], first: Sizes | None
) -> dict[str, int]:
    """Change the numbers, if some do, and return those."""
    expected = outputs(model, example_input)
    for changes in () if first is None else _complete(module, known, first):
        if not _same(_of_fresh(model, path, module, changes, example_input), expected):
            continue
        undo = cut(model, Cuts({}, {_at(path, f"config.{name}"): value for name, value in changes.items()}))
        if _same(outputs(model, example_input), expected):
            return changes
        undo()
    return {}


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return relative_error(found, expected) <= max((LIMITS.get(x.dtype, 0.0) for x in expected), default=0.0)


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _configured(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the outermost modules that are built from a configuration alone."""
    above: list[str] = []
    for path, module in named_modules(model):
        kind = getattr(type(module), "config_class", None)
        if not isinstance(kind, type) or not isinstance(getattr(module, "config", None), kind):
            continue
        if not any(path.startswith(f"{one}." if one else "") for one in above):
            above.append(path)
            yield path, module


def _numbers(owner: Any, start: str = "") -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a configuration by their dotted paths, those of its lists and parts too."""
    items = enumerate(owner) if isinstance(owner, (list, tuple)) else vars(owner).items()
    for key, value in items:
        path = f"{start}{key}"
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield path, value
        elif not str(key).startswith("_") and (isinstance(value, (list, tuple)) or hasattr(value, "to_dict")):
            yield from _numbers(value, f"{path}.")


def _complete(module: Any, known: Mapping[str, int], first: Sizes) -> Iterator[dict[str, int]]:
    """Yield changes of numbers by which a module of these shapes is built, of at most `_MOST` that are tried."""
    wanted, seen = _shapes(module), set[frozenset[tuple[str, int]]]()

    def beyond(changes: dict[str, int], left: Sizes) -> Iterator[dict[str, int]]:
        """Yield complete changes that begin with these, after which the sizes `left` still differ."""
        if not left:
            yield changes
        for name, value in _moves(known, left):
            more = {**changes, name: value}
            key = frozenset(more.items())
            if name in changes or key in seen or len(seen) >= _MOST:
                continue
            seen.add(key)
            after = _differing(module, more, wanted)
            if after is not None and {one[:2] for one in after} < {one[:2] for one in left}:
                yield from beyond(more, after)

    return beyond({}, first)


def _moves(known: Mapping[str, int], left: Sizes) -> Iterator[tuple[str, int]]:
    """Yield numbers changed in the ratio of a dimension that differs."""
    ratios = dict.fromkeys((built, size) for _, _, built, size in sorted(left))
    for name, value in known.items():
        for built, size in ratios:
            multiple = value % built == 0 or built % value == 0
            if multiple and value * size % built == 0 and value > 1:
                yield name, value * size // built


def _differing(module: Any, changes: Mapping[str, int], wanted: Mapping[str, torch.Size]) -> Sizes | None:
    """Return which sizes a model of these numbers has otherwise; None if it is none of the same tensors."""
    built = _built(module, changes, "meta")
    if built is None:
        return None
    found = _shapes(built)
    if found.keys() != wanted.keys() or any(len(found[name]) != len(shape) for name, shape in wanted.items()):
        return None
    return frozenset(
        (name, d, size, wanted[name][d])
        for name, shape in found.items()
        for d, size in enumerate(shape)
        if size != wanted[name][d]
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _built(module: Any, changes: Mapping[str, int], device: str) -> nn.Module | None:
    """Return a fresh model of a changed configuration, as a reader of its file builds it; None if there is none."""
    config = copy.deepcopy(module.config)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of numbers that are only tried
    try:
        for name, value in changes.items():
            _set(config, name, value)
        config = type(config).from_dict(config.to_dict())
        with torch.device(device), torch.random.fork_rng(devices=[]):
            fresh: nn.Module = type(module)(config)
    except Exception:  # noqa: BLE001 - whatever numbers that do not fit raise in the model's own code
        return None
    finally:
        logging.disable(before)
    return fresh


def _set(owner: Any, name: str, value: int) -> None:
    first, _, rest = name.partition(".")
    inner = getattr(owner, first)
    if not rest:
        setattr(owner, first, value)
    elif isinstance(inner, (list, tuple)):
        items = list(inner)
        items[int(rest)] = value
        setattr(owner, first, type(inner)(items))
    else:
        _set(inner, rest, value)


def _of_fresh(model: nn.Module, path: str, module: Any, changes: Mapping[str, int], example_input: Any) -> list[Tensor]:
    """Return the outputs of the model with a freshly built module, of the same weights, in place of `module`."""
    fresh = _built(module, changes, "cpu")
    if fresh is None:
        return []
    fresh.to(next(module.parameters()).device).load_state_dict(module.state_dict(), assign=True)
    fresh.eval()
    if not path:
        return outputs(fresh, example_input)
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, name, fresh)
    try:
        return outputs(model, example_input)
    finally:
        setattr(holder, name, module)
