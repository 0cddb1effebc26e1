"""The names that a forward reads, found in its bytecode (a static read set): they decide which modules to trace."""

from __future__ import annotations

import builtins
import dis
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ..mask_state.masks import original_class
from ..module_walk import parameter_names

METADATA = frozenset("shape dtype device ndim requires_grad data_ptr size dim numel stride is_floating_point".split())
CONV_AND_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


def is_torch(cls: type) -> bool:
    """Return whether a class is torch's own; the class of a parametrized module counts as its base class."""
    while cls.__module__ == "torch.nn.utils.parametrize" and "Parametrized" in cls.__name__ and cls.__bases__:
        if issubclass(cls, nn.ModuleList):
            break
        cls = cls.__bases__[0]
    return cls.__module__ == "torch" or cls.__module__.startswith("torch.")


def has_forward(cls: type[nn.Module]) -> bool:
    """Return whether a class defines a forward; a module that only holds parameters has none."""
    return getattr(cls, "forward", None) is not nn.Module.forward  # scripted classes have none


def reads_weights_of_children(module: nn.Module) -> bool:
    """Return whether code reachable from a module's forward reads the name of a submodule's weight.

    Reads of metadata (`self.proj.weight.dtype`) do not count. Parameters in a ParameterList or ParameterDict have no
    attribute name, so with such a child the answer is True.
    """
    if any(isinstance(child, (nn.ParameterList, nn.ParameterDict)) for child in module.children()):
        return True
    below = ((owner, p) for child in module.children() for owner in child.modules() for p in parameter_names(owner))
    # Modules without a forward only hold parameters, whatever those are called.
    names = frozenset(name for owner, name in below if "weight" in name or not has_forward(original_class(owner)))
    cls = original_class(module)
    return bool(names) and bool(names & _attributes_read(cls))  # type: ignore[arg-type]


def reads_weights(module: nn.Module) -> bool:
    """Return whether a module's forward may read weights of submodules, or of modules held by other attributes."""
    if reads_weights_of_children(module):
        return True
    values = [v for name, v in module.__dict__.items() if name != "_modules"]
    values += [item for v in values if isinstance(v, (list, tuple)) for item in v]
    values += [item for v in values if isinstance(v, dict) for item in v.values()]
    held = (owner for value in values if isinstance(value, nn.Module) for owner in value.modules())
    names = {name for owner in held for name in parameter_names(owner) if "weight" in name}
    return bool(names and names & _attributes_read(original_class(module)))  # type: ignore[arg-type]


def chained_reads(module: nn.Module) -> list[str]:
    """Return the paths of the children's weights that a module's code reads as one chain, as in `self.proj.weight`."""
    cls = original_class(module)
    names = _attributes_read(cls)  # type: ignore[arg-type]
    found = []
    for child, below in module.named_children():
        weights = [name for name in parameter_names(below) if "weight" in name and name in names]
        found += [f"{child}.{name}" for name in weights if (child, name) in _chains(cls)]  # type: ignore[arg-type]
    return found


def read_by_functions(module: nn.Module) -> dict[tuple[str, str], str]:
    """Return {(child, weight): function} of children's weights that plain functions among the attributes read."""
    held = [value for name, value in module.__dict__.items() if name != "forward"]
    held += [item for value in held if isinstance(value, (tuple, list)) for item in value]
    held += [item for value in held if isinstance(value, dict) for item in value.values()]
    found = {}
    for function in (value for value in held if isinstance(value, FunctionType)):
        for child, name in _pairs(function):
            owner = module._modules.get(child)
            if owner is not None and "weight" in name and name in owner._parameters:
                found[child, name] = function.__name__
    return found


def mentions(module: nn.Module, names: frozenset[str]) -> bool:
    """Return whether code reachable from a module's forward, including methods of submodules, reads one of `names`.

    Parameters in a ParameterList or ParameterDict have no attribute name: with such a child the answer is True.
    """
    if any(isinstance(child, (nn.ParameterList, nn.ParameterDict)) for child in module.children()):
        return True
    classes = {original_class(below) for below in module.modules() if below is not module}
    below = frozenset(cls for cls in classes if not is_torch(cls))
    return bool(names & _attributes_read(original_class(module), below))  # type: ignore[arg-type]


def mentions_own(module: nn.Module, paths: Iterable[str]) -> bool:
    """Return whether all `paths` name the module's own parameters, and its forward's code reads each of them."""
    return set(paths) <= module._parameters.keys() & _attributes_read(original_class(module))  # type: ignore[arg-type]


def mentions_function(cls: type[nn.Module], wanted: frozenset[str]) -> bool:
    """Return whether the code of a class's forward mentions a function with one of these names, under any name."""
    read = ((name, function.__globals__.get(name)) for function in reachable(cls) for name in names_read(function))
    return any(name in wanted or getattr(value, "__name__", "") in wanted for name, value in read)


def is_closed(cls: type[nn.Module]) -> bool:
    """Return whether a class's forward provably depends only on its arguments and its module's attributes.

    Its graph for one kind of call is then complete. Modes, globals, class attributes and closures may change later, and
    any name not known to be constant or a tensor operation is treated as one of them.
    """
    functions = reachable(cls)
    harmless = [*functions, torch, torch.nn, F, math, Tensor, *ops.MASKED, *map(vars(builtins).get, _HARMLESS)]
    return bool(functions) and all(_reads_only_its_own(function, cls, harmless) for function in functions)


def _reads_only_its_own(function: FunctionType, cls: type, harmless: list[Any]) -> bool:
    if set(function.__code__.co_freevars) - {"__class__"}:
        return False
    for instruction in instructions(function.__code__):
        name = instruction.argval
        if instruction.opname in _OUTSIDE or (instruction.opname in LOADS and name in _MODES):
            return False
        if instruction.opname == "LOAD_GLOBAL":
            value = function.__globals__.get(name, vars(builtins).get(name))
            custom = isinstance(value, type) and issubclass(value, torch.autograd.Function)
            if not custom and not any(value is one for one in harmless):
                return False
        elif instruction.opname in LOADS and _is_plain_class_attribute(cls, name):
            return False
    return True


def _is_plain_class_attribute(cls: type, name: str) -> bool:
    found = [vars(base)[name] for base in cls.__mro__ if name in vars(base) and not is_torch(base)]
    return any(not callable(value) and not isinstance(value, (property, staticmethod, classmethod)) for value in found)


_HARMLESS = frozenset(
    """abs all any bool dict enumerate float int isinstance len list max min range reversed slice sum super tuple zip
    AssertionError NotImplementedError RuntimeError TypeError ValueError""".split()
)
_OUTSIDE = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME", "LOAD_NAME"})
_MODES = frozenset(
    """is_grad_enabled is_inference_mode_enabled is_autocast_enabled is_autocast_cpu_enabled get_default_dtype
    is_compiling is_exporting get_num_threads backends compiler cuda __class__ __dict__""".split()
)

# Functions of torch.utils.checkpoint, of timm and of transformers.
_CHECKPOINTING = frozenset({"checkpoint", "checkpoint_sequential", "checkpoint_seq", "_gradient_checkpointing_func"})


def names_read(function: Callable[..., Any]) -> frozenset[str]:
    """Return the attribute names that a Python function reads; empty for a function without bytecode."""
    code = getattr(function, "__code__", None)
    return frozenset(names_in(code)) if isinstance(code, CodeType) else frozenset()


def mentions_training(cls: type[nn.Module]) -> bool:
    """Return whether the code of a class's forward reads `training`."""
    return "training" in _attributes_read(cls)  # type: ignore[arg-type]


def mentions_autocast(cls: type[nn.Module]) -> bool:
    """Return whether the code of a class's forward checks for autocast."""
    return any("is_autocast" in name for name in _attributes_read(cls))  # type: ignore[arg-type]


def recomputes(cls: type[nn.Module]) -> bool:
    """Return whether the forward of `cls` mentions activation checkpointing, which runs parts of the forward again."""
    return not _CHECKPOINTING.isdisjoint(_attributes_read(cls))  # type: ignore[arg-type]


@cache
def _attributes_read(cls: type, below: frozenset[type] = frozenset()) -> frozenset[str]:
    """Return the attribute names read by a class's forward and by the methods and functions that it mentions.

    A mentioned name may also be a method of a class in `below`.
    """
    return frozenset(name for function in reachable(cls, below) for name in names_in(function.__code__))


@cache
def _chains(cls: type) -> frozenset[tuple[str, str]]:
    """Return the pairs of attribute names that a class's forward reads in succession: (proj, weight)."""
    return frozenset(pair for function in reachable(cls) for pair in _pairs(function))


def _pairs(function: FunctionType) -> list[tuple[str, str]]:
    loads = list(instructions(function.__code__))
    return [(a.argval, b.argval) for a, b in pairwise(loads) if {a.opname, b.opname} <= _LOADS_ATTRIBUTE]


def reachable(cls: type, below: frozenset[type] = frozenset(), start: str = "forward") -> list[FunctionType]:
    """Return the method `start` of a class and the functions that it may call by a name that its code mentions.

    Functions of torch are left out. A method's name stands for its definition in every base class (for `super`).
    """
    found: dict[CodeType, FunctionType] = {}
    waiting: list[Any] = _definitions(cls, start)
    while waiting:
        value = waiting.pop(0)
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)  # properties, static methods
        code = getattr(function, "__code__", None)
        home = str(getattr(function, "__module__", "")).split(".")[0]
        if not isinstance(code, CodeType) or code in found or home == "torch":
            continue
        found[code] = function
        waiting.append(getattr(function, "__wrapped__", None))  # what a decorator calls
        for name in names_in(code):
            methods = _definitions(cls, name)
            waiting += methods or [function.__globals__.get(name)]
            waiting += [method for other in below for method in _definitions(other, name)]
    return list(found.values())


def _definitions(cls: type, name: str) -> list[Any]:
    return [vars(base)[name] for base in cls.__mro__ if name in vars(base)]


_LOADS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
LOADS = frozenset({*_LOADS_ATTRIBUTE, "LOAD_GLOBAL", "LOAD_SUPER_ATTR"})


def instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of a function and of the functions nested in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname != "CACHE":
            yield instruction
        if instruction.opname == "LOAD_CONST" and isinstance(instruction.argval, CodeType):
            yield from instructions(instruction.argval)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code loads, except those of which it only reads metadata (shape, dtype, device)."""
    found = list(instructions(code))
    for instruction, following in zip(found, [*found[1:], None], strict=True):
        only_metadata = following is not None and following.opname in _LOADS_ATTRIBUTE and following.argval in METADATA
        if instruction.opname in LOADS and not only_metadata:
            yield instruction.argval
