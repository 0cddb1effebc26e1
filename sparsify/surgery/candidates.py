"""Which modules have to be traced: those whose own forward reads the weights of modules instead of calling them."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

from .masks import original_class

METADATA = frozenset(
    {
        "shape",
        "dtype",
        "device",
        "ndim",
        "requires_grad",
        "data_ptr",
        "size",
        "dim",
        "numel",
        "stride",
        "is_floating_point",
    }
)
CONV_AND_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


def is_torch(cls: type) -> bool:
    """Whether a class is torch's own."""
    return cls.__module__ == "torch" or cls.__module__.startswith("torch.")


def has_forward(cls: type[nn.Module]) -> bool:
    """Whether modules of a class can be called: a module that only holds parameters has no forward."""
    return cls.forward is not nn.Module.forward


def reads_weights_of_children(module: nn.Module) -> bool:
    """Whether the code that a module's forward can reach mentions the name of a weight of a module below it.

    Mentions such as `self.proj.weight.dtype` do not count. Parameters in a list or dict have no name to look for.
    """
    if any(isinstance(child, (nn.ParameterList, nn.ParameterDict)) for child in module.children()):
        return True
    below = (p for child in module.children() for owner in child.modules() for p in owner._parameters)
    names = frozenset(name for name in below if "weight" in name)
    cls = original_class(module)
    return bool(names) and bool(names & _attributes_read(cls))  # type: ignore[arg-type]


def mentions(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether the code that a module's forward can reach, methods of modules below included, mentions one of `names`.

    Parameters in a list or dict have no name to look for: with one below, anything may be mentioned.
    """
    if any(isinstance(child, (nn.ParameterList, nn.ParameterDict)) for child in module.children()):
        return True
    classes = {original_class(below) for below in module.modules() if below is not module}
    below = frozenset(cls for cls in classes if not is_torch(cls))
    return bool(names & _attributes_read(original_class(module), below))  # type: ignore[arg-type]


def mentions_own(module: nn.Module, paths: Iterable[str]) -> bool:
    """Whether these paths are all names of the module's own parameters, and its forward's code mentions each."""
    return set(paths) <= module._parameters.keys() & _attributes_read(original_class(module))  # type: ignore[arg-type]


@cache
def _attributes_read(cls: type, below: frozenset[type] = frozenset()) -> frozenset[str]:
    """Return the attribute names that a class's forward reads, the methods and functions it mentions included.

    A name that it mentions may be a method of a class in `below` too.
    """
    found: set[str] = set()
    seen: set[CodeType] = set()
    waiting: list[Any] = [inspect.getattr_static(cls, "forward", None)]
    while waiting:
        value = waiting.pop()
        function = inspect.unwrap(value) if inspect.isfunction(value) else getattr(value, "fget", None) or value
        function = getattr(function, "__func__", function)  # static and class methods
        code = getattr(function, "__code__", None)
        if (
            not isinstance(code, CodeType)
            or code in seen
            or str(getattr(function, "__module__", "")).split(".")[0] == "torch"
        ):
            continue
        seen.add(code)
        for name in _names(code):
            found.add(name)
            method = inspect.getattr_static(cls, name, None)
            waiting.append(method if method is not None else function.__globals__.get(name))
            waiting.extend(inspect.getattr_static(other, name, None) for other in below)
    return frozenset(found)


def _names(code: CodeType) -> Iterator[str]:
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        loads = instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_SUPER_ATTR")
        only_metadata = (
            following is not None and following.opname in ("LOAD_ATTR", "LOAD_METHOD") and following.argval in METADATA
        )
        if loads and not only_metadata:
            yield instruction.argval
        if instruction.opname == "LOAD_CONST" and isinstance(instruction.argval, CodeType):
            yield from _names(instruction.argval)
