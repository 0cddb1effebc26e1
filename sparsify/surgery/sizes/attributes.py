"""Find, check, set and restore the attributes of modules that hold sizes (out_channels, num_heads), by dotted path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from ...errors import SparsifyError, did_you_mean, one_line

# Objects shared beyond this model, which cuts read from a file must not change.
_SHARED = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
_CONTAINERS = (list, tuple, dict)


class NewAttribute(NamedTuple):
    """An object of the model, the name of its attribute, and the new value, of the old value's type."""

    owner: Any
    name: str
    value: Any


def new_attributes(model: nn.Module, attributes: Mapping[str, Any]) -> list[NewAttribute]:
    """Return the changes for `attributes` (dotted path -> integer or tuple of integers) without making them.

    The last parts of a path may be keys of a list, tuple or dict; the change is then a changed copy of the container.
    Raises SparsifyError for a path that does not exist, and for an old value of another kind than the new one.
    """
    staged: dict[tuple[int, str], NewAttribute] = {}
    for path, value in attributes.items():
        owner, name, keys = _found(model, path, staged)
        old = _get(owner, name, staged)
        staged[id(owner), name] = NewAttribute(owner, name, _replaced(old, keys, value, path))
    return list(staged.values())


def set_attributes(attributes: list[NewAttribute]) -> Callable[[], None]:
    """Set all of `attributes` and return a function that restores them.

    Raises SparsifyError, with nothing changed, for an attribute that cannot be set.
    """
    done: list[tuple[Any, str, bool, Any]] = []

    def undo() -> None:
        for owner, name, own, old in reversed(done):
            if own:
                setattr(owner, name, old)
            else:  # an attribute of the class, or a property
                _drop(owner, name, old)

    for owner, name, value in attributes:
        old = getattr(owner, name)
        own = name in getattr(owner, "__dict__", {})
        try:
            setattr(owner, name, value)
        except (AttributeError, TypeError, ValueError) as error:
            undo()
            where = f"apply_cuts: {type(owner).__name__}.{name}"
            raise SparsifyError(f"{where} cannot be set: {one_line(error)}") from error
        done.append((owner, name, own, old))
    return undo


def _drop(owner: Any, name: str, old: Any) -> None:
    try:
        delattr(owner, name)
    except AttributeError:
        setattr(owner, name, old)


def _found(model: nn.Module, path: str, staged: Mapping[tuple[int, str], NewAttribute]) -> tuple[Any, str, list[Any]]:
    """Return the object that owns the attribute, the attribute's name, and the keys inside its containers."""
    parts = path.split(".")
    owner, name, keys = model, parts[0], list[Any]()
    value = _get(model, name, staged, path)
    for part in parts[1:]:
        if isinstance(value, _CONTAINERS):
            key = _key(value, part, path)
            keys.append(key)
            value = value[key]
        else:
            owner, name, keys = value, part, []
            value = _get(owner, name, staged, path)
    return owner, name, keys


def _get(owner: Any, name: str, staged: Mapping[tuple[int, str], NewAttribute], path: str = "") -> Any:
    if (id(owner), name) in staged:
        return staged[id(owner), name].value
    if isinstance(owner, _SHARED) or name.startswith("__") or not hasattr(owner, name):
        numbers = [key for key, value in vars(owner).items() if isinstance(value, int)] if _open(owner) else []
        hint = did_you_mean(name, numbers)
        raise SparsifyError(f"apply_cuts: the model has no attribute '{path}'{hint}")
    return getattr(owner, name)


def _open(owner: Any) -> bool:
    return hasattr(owner, "__dict__") and not isinstance(owner, _SHARED)


def _key(container: Any, part: str, path: str) -> Any:
    if isinstance(container, dict):
        known = {str(key): key for key in container}
        if part in known:
            return known[part]
    elif part.isdecimal() and len(part) < 10 and int(part) < len(container):
        return int(part)
    raise SparsifyError(f"apply_cuts: the model has no attribute '{path}': there is no '{part}' among {len(container)}")


def _replaced(old: Any, keys: list[Any], value: Any, path: str) -> Any:
    """Return a copy of `old` with the value at `keys` replaced; containers keep their types."""
    if not keys:
        return _like(old, value, path)
    items: Any = list(old) if isinstance(old, tuple) else copy.copy(old)
    items[keys[0]] = _replaced(old[keys[0]], keys[1:], value, path)
    return _as_tuple(old, items) if isinstance(old, tuple) else items


def _like(old: Any, value: Any, path: str) -> Any:
    if isinstance(value, tuple) and isinstance(old, list | tuple):
        known = list(old) if len(old) == len(value) else [old[0] if old else 0] * len(value)
        items = [_like(before, after, path) for before, after in zip(known, value, strict=True)]
        return _as_tuple(old, items) if isinstance(old, tuple) else items
    if isinstance(value, int) and isinstance(old, int) and not isinstance(old, bool):
        return value
    wanted = "integers" if isinstance(value, tuple) else "an integer"
    raise SparsifyError(f"apply_cuts: {path} is of type {type(old).__name__}, its new value is {wanted}")


def _as_tuple(old: Any, items: list[Any]) -> Any:
    return type(old)._make(items) if hasattr(old, "_make") else type(old)(items)
