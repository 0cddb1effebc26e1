"""Deep copies of models that hold functions as attributes, such as a forward that another library has set."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache, partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from .mask_state.parametrized import graph_free
from .mask_state.sharding import refuse_sharded


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """Return a deep copy of `model`; `memo` maps ids of objects in the model to their replacements.

    copy.deepcopy shares functions: a forward set as an attribute, whose closure holds the module or its former forward,
    would run the original module. Here such functions are rebound to the copied modules.
    """
    refuse_sharded(model, "copy", "fold, shrink, trace and compile it before fully_shard, or save it and load the file")
    memo = {**graph_free(model), **(memo or {})}
    copied = _copied(model, memo)
    for module in copied.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, (FunctionType, MethodType, partial)):
                module.__dict__[name] = _rebound(value, memo, {})
    return copied


_ATOMS = (type(None), bool, int, float, str, type, torch.dtype, torch.device, torch.Size)


def _copied(module: Any, memo: dict[int, Any]) -> Any:
    """Return copy.deepcopy(module, memo), much faster for modules that do not customise copying."""
    if id(module) in memo:
        return memo[id(module)]
    if not isinstance(module, nn.Module) or not _is_copied_by_state(type(module)):  # type: ignore[arg-type]
        return copy.deepcopy(module, memo)
    made = memo[id(module)] = type(module).__new__(type(module))
    state = {}
    for name, value in module.__getstate__().items():  # type: ignore[no-untyped-call]
        if type(value) in _ATOMS:
            state[name] = value
        elif id(value) in memo:
            state[name] = memo[id(value)]
        elif type(value) in (dict, OrderedDict, set) and (not value or name == "_modules"):
            state[name] = memo[id(value)] = type(value)()
            if value:
                state[name].update((key, _copied(below, memo)) for key, below in value.items())
        else:
            state[name] = copy.deepcopy(value, memo)
    made.__setstate__(state)  # type: ignore[no-untyped-call]
    return made


@cache
def _is_copied_by_state(cls: Any) -> bool:
    """Return whether copy.deepcopy copies the attributes of a module one by one."""
    plain = all(
        getattr(cls, name) is getattr(nn.Module, name) for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )
    slots = any(base.__dict__.get("__slots__") for base in cls.__mro__)
    return plain and not slots and not hasattr(cls, "__deepcopy__") and cls not in copyreg.dispatch_table


def _rebound(value: Any, memo: dict[int, Any], seen: dict[int, Any]) -> Any:
    """Return `value` with the modules it holds replaced by their copies, or `value` itself if it holds none."""
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        function, owner = _rebound(value.__func__, memo, seen), _rebound(value.__self__, memo, seen)
        changed = function is not value.__func__ or owner is not value.__self__
        seen[id(value)] = MethodType(function, owner) if changed else value
    elif isinstance(value, partial):
        held = (value.func, value.args, value.keywords)
        func, args, keywords = (_rebound(one, memo, seen) for one in held)
        if (func, args, keywords) != held:
            seen[id(value)] = partial(func, *args, **keywords)
    elif isinstance(value, FunctionType):
        seen[id(value)] = _rebound_function(value, memo, seen)
    elif type(value) in (tuple, list):
        items = [_rebound(item, memo, seen) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            seen[id(value)] = type(value)(items)
    elif type(value) is dict:
        found = {key: _rebound(item, memo, seen) for key, item in value.items()}
        if any(found[key] is not value[key] for key in found):
            seen[id(value)] = found
    return seen[id(value)]


def _rebound_function(function: FunctionType, memo: dict[int, Any], seen: dict[int, Any]) -> FunctionType:
    cells = [cell for cell in function.__closure__ or () if _filled(cell)]
    held = [*(cell.cell_contents for cell in cells), function.__defaults__, function.__kwdefaults__]
    held.append(function.__dict__.get("__wrapped__"))
    new = [_rebound(one, memo, seen) for one in held]
    if all(a is b for a, b in zip(new, held, strict=True)):
        return function
    contents = dict(zip(map(id, cells), new, strict=False))
    closure = tuple(
        CellType(contents[id(cell)]) if id(cell) in contents else CellType() for cell in function.__closure__ or ()
    )
    made = FunctionType(function.__code__, function.__globals__, function.__name__, new[-3], closure)
    made.__kwdefaults__ = new[-2]
    made.__dict__.update(function.__dict__)
    if new[-1] is not None:
        made.__dict__["__wrapped__"] = new[-1]
    made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
    return made


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False
