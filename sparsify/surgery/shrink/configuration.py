"""Configurations (of transformers, say) updated after a shrink, so that the class builds the cut model from them.

A forward does not show which number of a configuration a size came from (`intermediate_size` is read when layers are
created). So candidates are built: numbers change one at a time, in the ratio in which dimensions changed, as long as
fewer dimensions differ. The first configuration is taken that builds the cut model's shapes and whose model, with the
cut weights, gives the same outputs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...relative_error import relative_error
from ..module_walk import full_name, named_modules, owner_of
from ..sizes.other_inputs import outputs
from .cuts import Cuts, cut
from .equivalence import LIMITS

Sizes: TypeAlias = frozenset[tuple[str, int, int, int]]  # name, dimension, size that is built, size that is wanted
_MOST = 60  # configurations to build
_STAYS = "no configuration builds it; its file stores the cuts"


def follow_configurations(model: nn.Module, example_input: Any) -> str:
    """Set the numbers of a cut model's configurations, in place, so that its class builds the same model from them.

    The changes become part of the model's cuts. `model` must be in eval mode. Returns a description of the changes and
    of configurations that could not follow; "" if there is no configuration, or if it fits unchanged.
    """
    lines = []
    for path, module in _configured(model):
        known = dict(_numbers(module.config))
        first = _differing(module, {}, _shapes(module))
        if first == frozenset():
            continue
        changes = _followed(model, path, module, example_input, known, first)
        shown = ", ".join(f"{name} {known[name]} -> {value}" for name, value in changes.items())
        lines.append(f"{full_name(path, 'config')}: {shown or _STAYS}")
    return "; ".join(lines)


def _followed(
    model: nn.Module, path: str, module: Any, example_input: Any, known: Mapping[str, int], first: Sizes | None
) -> dict[str, int]:
    """Change the numbers of one configuration, if a change works, and return {path: new number}, else {}."""
    expected = outputs(model, example_input)
    for changes in () if first is None else _complete(module, known, first):
        if not _same(_of_fresh(model, path, module, changes, example_input), expected):
            continue
        undo = cut(model, Cuts({}, {full_name(path, f"config.{name}"): value for name, value in changes.items()}))
        if _same(outputs(model, example_input), expected):
            return changes
        undo()
    return {}


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return relative_error(found, expected) <= max((LIMITS.get(x.dtype, 0.0) for x in expected), default=0.0)


def _configured(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, module) of the outermost modules that hold a configuration of their `config_class`."""
    above: list[str] = []
    for path, module in named_modules(model):
        kind = getattr(type(module), "config_class", None)
        if not isinstance(kind, type) or not isinstance(getattr(module, "config", None), kind):
            continue
        if not any(path.startswith(f"{one}." if one else "") for one in above):
            above.append(path)
            yield path, module


def _numbers(owner: Any, start: str = "") -> Iterator[tuple[str, int]]:
    """Yield (dotted path, number) of the positive integers in a configuration, its lists and its sub-configurations."""
    items = enumerate(owner) if isinstance(owner, (list, tuple)) else vars(owner).items()
    for key, value in items:
        path = f"{start}{key}"
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield path, value
        elif not str(key).startswith("_") and (isinstance(value, (list, tuple)) or hasattr(value, "to_dict")):
            yield from _numbers(value, f"{path}.")


def _complete(module: Any, known: Mapping[str, int], first: Sizes) -> Iterator[dict[str, int]]:
    """Yield changes of numbers that build a module with the shapes of `module`; tries at most `_MOST` of them."""
    wanted, seen = _shapes(module), set[frozenset[tuple[str, int]]]()

    def beyond(changes: dict[str, int], left: Sizes) -> Iterator[dict[str, int]]:
        """Yield complete changes that extend `changes`, after which the sizes `left` still differ."""
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
    """Yield (path, new value) of numbers changed in the ratio of a dimension that differs."""
    ratios = dict.fromkeys((built, size) for _, _, built, size in sorted(left))
    for name, value in known.items():
        for built, size in ratios:
            multiple = value % built == 0 or built % value == 0
            if multiple and value * size % built == 0 and value > 1:
                yield name, value * size // built


def _differing(module: Any, changes: Mapping[str, int], wanted: Mapping[str, torch.Size]) -> Sizes | None:
    """Return the sizes that differ in a model built with `changes`; None if it cannot be built or has other tensors."""
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
    """Return a fresh module built from the changed configuration, as `from_pretrained` would; None if that fails."""
    config = copy.deepcopy(module.config)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # warnings about candidate numbers
    try:
        for name, value in changes.items():
            _set(config, name, value)
        config = type(config).from_dict(config.to_dict())
        with torch.device(device), torch.random.fork_rng(devices=[]):
            fresh: nn.Module = type(module)(config)
    except Exception:  # noqa: BLE001 - the model's own code may raise anything for unsuitable numbers
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
    """Return the model's outputs with `module` replaced by a fresh one of the same weights; [] if none is built."""
    fresh = _built(module, changes, "cpu")
    if fresh is None:
        return []
    fresh.to(next(module.parameters()).device).load_state_dict(module.state_dict(), assign=True)
    fresh.eval()
    if not path:
        return outputs(fresh, example_input)
    holder, name = owner_of(model, path)
    setattr(holder, name, fresh)
    try:
        return outputs(model, example_input)
    finally:
        setattr(holder, name, module)
