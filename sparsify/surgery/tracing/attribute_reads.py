"""The attributes that the forwards of a model may read, by the names in their bytecode."""

from __future__ import annotations

import dis
from collections.abc import Iterable
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..mask_state.masks import original_class
from .bytecode_scan import LOADS, instructions, is_torch, reachable

_BY_ANY_NAME = frozenset({"vars", "__dict__", "__getattribute__", "eval", "exec", "attrgetter", "globals"})
_OBJECT = ("LOAD_FAST", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD", "PUSH_NULL", "COPY_FREE_VARS")


def attributes_read(model: nn.Module) -> frozenset[str] | None:
    """Return the names of the attributes that the forwards of a model's modules may read, None if unknown.

    A name that they mention may be a method of any module: `self.cell.first_state(x)`.
    """
    for module in model.modules():
        functions = any(isinstance(value, (FunctionType, MethodType, partial)) for value in module.__dict__.values())
        if functions or module._forward_hooks or module._forward_pre_hooks:
            return None  # code outside of the class
    classes: set[Any] = {cls for cls in map(original_class, model.modules()) if not is_torch(cls)}
    found: set[str] = set()
    done: set[tuple[Any, str]] = set()
    waiting = {(cls, "forward") for cls in classes}
    while waiting:
        done |= waiting
        for cls, method in waiting:
            names = _names_read(cls, method)
            if names is None:
                return None
            found |= names
        waiting = {(cls, name) for cls in classes for name in _methods(cls) & found} - done
    return frozenset(found)


@cache
def _methods(cls: Any) -> frozenset[str]:
    """Return the names of a class's own methods and properties, without those of torch's classes."""
    owned = (vars(base).items() for base in cls.__mro__ if not is_torch(base))
    kinds = (FunctionType, property, staticmethod, classmethod)
    return frozenset(name for items in owned for name, value in items if isinstance(value, kinds))


@cache
def _names_read(cls: Any, method: str) -> frozenset[str] | None:
    found: set[str] = set()
    for function in reachable(cls, start=method):
        loads = list(instructions(function.__code__))
        found |= {one.argval for one in loads if one.opname in LOADS}
        for i, one in enumerate(loads):
            if one.opname in LOADS and one.argval in ("getattr", "hasattr"):
                name = _second_argument(loads[i + 1 :])
                if name is None:
                    return None
                found.add(name)
    return None if found & _BY_ANY_NAME else frozenset(found)


def _second_argument(following: Iterable[dis.Instruction]) -> str | None:
    """Return the second argument of a getattr or hasattr call if it is a constant string, else None."""
    after = next((one for one in following if not one.opname.startswith(_OBJECT)), None)
    return after.argval if after is not None and isinstance(after.argval, str) and "CONST" in after.opname else None
