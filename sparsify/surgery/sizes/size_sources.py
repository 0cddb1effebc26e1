"""Provenance of explicit sizes: attributes of modules, traced through one forward pass.

An attribute may equal the number of channels by chance. So every integer in a module's attributes, containers and
configurations is replaced by one that carries its path through arithmetic; the arguments of torch's functions then show
which attributes are used as sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...calls import run
from ..recording.context import eval_mode, module_names, not_compiled, own_inputs
from ..side_effects import changed_buffers, unchanged
from ..tracing.attribute_reads import attributes_read
from ..tracing.bytecode_scan import is_torch
from .attributes import new_attributes, set_attributes
from .other_inputs import outputs

_SHAPED = frozenset(
    "view reshape expand repeat tile broadcast_to unflatten zeros ones full new_zeros new_ones new_full".split()
)
SPLITS = ("split", "split_with_sizes")
_OPAQUE = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
_DEPTH = 3  # of configurations in configurations


class _TracedSize(int):
    """An integer with the paths of the attributes that it was computed from; `direct`: it is an attribute itself."""

    paths: frozenset[str]
    direct: bool


def _size(value: int, paths: frozenset[str], *, direct: bool) -> _TracedSize:
    made = _TracedSize(value)
    made.paths, made.direct = paths, direct
    return made


def _arithmetic(name: str) -> Callable[[_TracedSize, Any], Any]:
    plain = getattr(int, name)

    def operation(self: _TracedSize, other: Any) -> Any:
        outcome = plain(self, other)
        if type(outcome) is not int:
            return outcome
        return _size(outcome, self.paths | getattr(other, "paths", frozenset()), direct=False)

    return operation


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _method in (f"__{_name}__", f"__r{_name}__"):
        setattr(_TracedSize, _method, _arithmetic(_method))


@dataclass(frozen=True)
class Use:
    """A call with a size among its arguments: its module, the shape of its result, the dimension and the number.

    `dim` is None if the number is not the size of one dimension of the result.
    """

    module: str
    function: str
    shape: tuple[int, ...]
    dim: int | None
    number: int
    direct: bool


class Sources:
    """The uses of the integer attributes of an uncut model."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._model, self._example = model, example_input
        self._matters: dict[str, bool] = {}
        self._before: list[Tensor] | None = None

    @cached_property
    def uses(self) -> dict[str, list[Use]]:
        """The uses of each integer attribute in one forward pass, by dotted path; the pass runs on first access.

        Empty, without a pass, if no forward reads an attribute that may hold integers.
        """
        may_hold = (
            any(self.is_read(module, name) and _may_hold_numbers(value) for name, value in vars(module).items())
            for _, module in _watched_modules(self._model)
        )
        return _attribute_uses(self._model, self._example) if any(may_hold) else {}

    def is_read(self, module: nn.Module, name: str) -> bool:
        """Return whether a forward may read the attribute `name` of `module`, by the names in the model's code."""
        return self._read is None or name in self._read or is_torch(type(module))

    @cached_property
    def _read(self) -> frozenset[str] | None:
        return attributes_read(self._model)

    def matters(self, path: str, new: int) -> bool:
        """Return whether the uncut model's outputs change, or it fails, if the attribute at `path` is `new`."""
        if path not in self._matters:
            if self._before is None:
                self._before = outputs(self._model, self._example)
            undo = set_attributes(new_attributes(self._model, {path: new}))
            try:
                after = outputs(self._model, self._example)
                same = len(after) == len(self._before) and all(map(torch.equal, after, self._before))
            except Exception:  # noqa: BLE001 - the model's own code, which rejects the number
                same = False
            finally:
                undo()
            self._matters[path] = not same
        return self._matters[path]


def _attribute_uses(model: nn.Module, example_input: Any) -> dict[str, list[Use]]:
    """Return {dotted path: uses} of the integer attributes in one pass in eval mode.

    Empty for a model whose forward fails with subclasses of int.
    """
    running: list[str] = []
    mode = _Watch(running)
    with unchanged(model), changed_buffers(model, []), eval_mode(model), _watched_attributes(model):
        with not_compiled(), module_names(model, running), torch.no_grad(), mode:
            try:
                run(model, own_inputs(example_input))
            except Exception:  # noqa: BLE001 - the model's own code; with plain integers it runs
                return {}
    return mode.found


class _Watch(TorchFunctionMode):
    def __init__(self, running: list[str]) -> None:
        super().__init__()
        self.running = running
        self.found: dict[str, list[Use]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        given = list(_sizes((args, kwargs)))
        if given:
            name = getattr(func, "__name__", "")
            shape = tuple(outcome.shape) if isinstance(outcome, Tensor) else ()
            where = self.running[-1] if self.running else ""
            places = _places(name, args, kwargs, len(shape))
            for size in given:
                dim = next((d for d, one in places if one is size), None)
                for path in size.paths:
                    self.found.setdefault(path, []).append(Use(where, name, shape, dim, int(size), size.direct))
        return outcome


def _sizes(given: Any) -> Iterator[_TracedSize]:
    """Yield the integers with paths among a call's arguments, including those in slices."""
    if isinstance(given, _TracedSize):
        yield given
    elif isinstance(given, slice):
        yield from _sizes((given.start, given.stop))
    elif isinstance(given, (tuple, list, dict)):
        for item in given.values() if isinstance(given, dict) else given:
            yield from _sizes(item)


def _places(name: str, args: Any, kwargs: Any, rank: int) -> list[tuple[int, Any]]:
    """Return (dimension, size) for the explicit sizes of a call's result."""
    if name in SPLITS:
        given = next((one for one in [*args[1:], *kwargs.values()] if isinstance(one, (tuple, list))), ())
        return list(enumerate(given))
    if name not in _SHAPED:
        return []
    rest = list(args[1:]) if args and isinstance(args[0], Tensor) else list(args)
    first = 0
    if name == "unflatten":
        first = int(rest.pop(0)) if rest else int(kwargs["dim"])
    sizes = next((one for one in [*rest, *kwargs.values()] if isinstance(one, (tuple, list))), rest)
    if name == "unflatten":
        first %= max(1, rank - len(sizes) + 1)
    elif len(sizes) != rank:
        return []
    return [(first + i, one) for i, one in enumerate(sizes)]


@contextmanager
def _watched_attributes(model: nn.Module) -> Iterator[None]:
    """Inside the block, replace every integer above 1 in the attributes of the model's modules by one with its path."""
    before: list[tuple[dict[Any, Any], Any, Any]] = []
    seen: set[int] = set()
    for path, module in _watched_modules(model):
        _watch(vars(module), f"{path}." if path else "", before, seen)
    try:
        yield
    finally:
        for owner, key, value in reversed(before):
            owner[key] = value


def _watched_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule) and not type(module).__module__.startswith("torch.nn."):
            yield path, module


def _may_hold_numbers(value: Any) -> bool:
    return (
        (type(value) is int and value > 1)
        or (type(value) in (tuple, list, dict) and bool(value))
        or (_is_configuration(value))
    )


def _watch(owner: dict[str, Any], prefix: str, before: list[Any], seen: set[int], depth: int = 0) -> None:
    for key, value in list(owner.items()):
        path = f"{prefix}{key}"
        if type(value) is int or type(value) in (tuple, list, dict):
            before.append((owner, key, value))
            owner[key] = _knowing(value, path)
        elif _is_configuration(value) and id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            _watch(vars(value), f"{path}.", before, seen, depth + 1)


def _is_configuration(value: Any) -> bool:
    """Return whether a value is a plain object whose attributes can be set."""
    frozen = getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False)
    return hasattr(value, "__dict__") and not isinstance(value, _OPAQUE) and not callable(value) and not frozen


def _knowing(value: Any, path: str) -> Any:
    """Return an integer, or the integers in containers, with paths; other values unchanged."""
    if type(value) is int:
        return _size(value, frozenset([path]), direct=True) if value > 1 else value
    if type(value) is dict:
        return {key: _knowing(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_knowing(item, f"{path}.{i}") for i, item in enumerate(value))
    return value
