"""Shallow copies of modules, in which bound methods among the attributes are rebound to the copy."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

from torch import nn

_OTHER = nn.Module()
_NOT_OURS = frozenset({*nn.Module().__dict__, "forward"})


def with_attributes(cls: type[nn.Module], module: nn.Module) -> nn.Module:
    """Return a new object of class `cls` with the attributes of `module`, slots included."""
    copied: nn.Module = cls.__new__(cls)
    copied.__dict__.update(module.__dict__)
    for name in _slots(cls):
        if hasattr(module, name):
            setattr(copied, name, getattr(module, name))
    return copied


_SLOTS: dict[type, tuple[str, ...]] = {}


def _slots(cls: type) -> tuple[str, ...]:
    if cls not in _SLOTS:
        held = [vars(base).get("__slots__", ()) for base in cls.__mro__]
        names = [name for slots in held for name in ((slots,) if isinstance(slots, str) else slots)]
        _SLOTS[cls] = tuple(name for name in names if name not in ("__dict__", "__weakref__"))
    return _SLOTS[cls]


# The mark of torch.compiler.assume_constant_result, set without importing torch._dynamo.
_slots._dynamo_marked_constant = True  # type: ignore[attr-defined]


def bound_attributes(module: nn.Module) -> tuple[str, ...]:
    """Return the names of attributes that hold the module or its bound methods, also inside containers and partials."""
    others = [(name, value) for name, value in module.__dict__.items() if name not in _NOT_OURS]
    return tuple(name for name, value in others if rebound(value, module, _OTHER) is not value)


def bind_to(copied: nn.Module, module: nn.Module, names: tuple[str, ...]) -> None:
    """Rebind the methods of `module` in the attributes `names` of `copied` to `copied`, in place."""
    for name in names:
        if name in copied.__dict__:
            copied.__dict__[name] = rebound(copied.__dict__[name], module, copied)


def rebound(value: Any, module: nn.Module, copied: nn.Module, depth: int = 3) -> Any:
    """Return `value` with `module`, also as owner of bound methods, replaced by `copied`; itself if it has none."""
    if value is module:
        return copied
    if isinstance(value, MethodType):
        return MethodType(value.__func__, copied) if value.__self__ is module else value
    if not depth:  # a container may hold itself
        return value
    if type(value) is partial:
        parts = (value.func, value.args, value.keywords)
        function, args, keywords = (rebound(part, module, copied, depth - 1) for part in parts)
        same = function is value.func and args is value.args and keywords is value.keywords
        return value if same else partial(function, *args, **keywords)
    if type(value) in (tuple, list):
        items = [rebound(item, module, copied, depth - 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    if type(value) is dict:
        made = {key: rebound(item, module, copied, depth - 1) for key, item in value.items()}
        return value if all(made[key] is item for key, item in value.items()) else made
    return value
