"""Forwards of a module's own: traced by fx with its children as leaves, their conv and linear nodes made masked.

A graph holds for one kind of call (train or eval, which arguments are tensors, the values of the others, the module's
settings). The rewritten module keeps one compiled function for each kind it has met and makes others when they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import SparsifyError
from .effects import in_mode
from .graphs import compiled, insert_masks
from .lent import run_on_stand_in
from .masks import original_class
from .tracing import Call, Placeholder, TraceFailure, default_call, map_leaves, trace_forward

_TENSORS = (Tensor, fx.Proxy, Placeholder)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum)
# What a graph may hold as a constant of a call: it cannot change later.
CONSTANT = (*_PLAIN, type, FunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format)
_KINDS = 64  # of calls that are kept for one module: an argument that always differs must not fill the memory
_LONGEST = 64  # list among a module's settings that is looked at
OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


@dataclass
class Rewritten:
    """The compiled forwards of one module by kind of call, and the computation of its effective weights.

    While a `late` one has none, the original forward runs on a stand-in, unless something traces it.
    """

    functions: dict[Any, tuple[Any, Callable[..., Any]]] = field(default_factory=dict)
    effective: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    late: bool = False

    def __deepcopy__(self, memo: Any) -> Rewritten:
        return Rewritten(dict(self.functions), dict(self.effective), self.late)

    def __reduce__(self) -> Any:
        return Rewritten, ({}, {}, self.late)  # generated functions do not pickle; they are made again when called


def rewritten_members(original: type[nn.Module]) -> dict[str, Any]:
    """Return the class members that run the masked graphs in place of the original forward."""

    @wraps(original.forward)
    def rewritten(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors: list[Any] = []
        try:
            key = (self.training, _kind(args, tensors), _kind(kwargs, tensors))
        except _NoKind as error:
            _refuse_if_computed(self, error)
            return run_on_stand_in(original.forward, self, args, kwargs)
        if self.masked_forwards.late:
            if torch.compiler.is_compiling() or any(isinstance(tensor, fx.Proxy) for tensor in tensors):
                _make_functions(self)
            if not self.masked_forwards.functions:
                return run_on_stand_in(original.forward, self, args, kwargs)
        settings, function = self.masked_forwards.functions.get(key, (None, None))
        # torch.compile watches the settings itself: it would only be slowed down by reading all of them.
        if function is None or (not torch.compiler.is_compiling() and settings != _settings(self)):
            function = _trace_and_add(self, Call(*_placeholders(args, kwargs)), key)
        if function is run_on_stand_in:
            return run_on_stand_in(original.forward, self, args, kwargs)
        return function(self, *tensors)

    def compute_effective_weight(self: Any, name: str) -> Tensor:
        if name not in self.masked_forwards.effective:  # just unpickled
            prepare(self, plain_graphs(self).graphs)
        computed: Tensor = self.masked_forwards.effective[name](self)
        return computed

    return {"forward": rewritten, "compute_effective_weight": compute_effective_weight}


@dataclass(frozen=True)
class PlainGraphs:
    """The traced forwards of one module for the plainest call, children as leaves, by training mode.

    `partial` holds those that only show what the forward computes, traced on `module`; `failure` says why.
    """

    module: nn.Module
    graphs: dict[bool, fx.Graph]
    partial: dict[bool, fx.Graph]
    failure: str


def plain_graphs(module: nn.Module) -> PlainGraphs:
    """Trace the plainest call of a module's own forward in train and eval mode."""
    graphs, partial, failure = {}, {}, ""
    original = as_original(module)
    call = default_call(type(original).forward)
    constants: dict[str, Tensor] = {}
    for training in (True, False):
        try:
            graphs[training] = trace_forward(original, call, training=training)
        except TraceFailure as error:
            failure = str(error)
            constants |= error.constants
            if error.graph is not None:
                partial[training] = error.graph
    original.__dict__.update(constants)
    return PlainGraphs(original, graphs, partial, failure)


def prepare(module: nn.Module, graphs: dict[bool, fx.Graph]) -> None:
    """Make the functions for the plainest call, so that nothing is traced in a first forward.

    A graph that is missing is of a call that is never made so, a size missing say; the real ones are traced when met.
    """
    call = default_call(original_class(module).forward)
    for training, graph in graphs.items():
        _add_function(module, graph, (training, _kind(call.args, []), _kind(call.kwargs, [])))


def _make_functions(module: Any) -> None:
    """Make the functions for the plainest call, if there are none yet."""
    if not module.masked_forwards.functions:
        prepare(module, plain_graphs(module).graphs)


# What torch.compiler.assume_constant_result says, without loading torch._dynamo: call it, do not look into it.
_make_functions._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _NoKind(Exception):
    """Arguments that are not known to stay what they are, so that no graph can be kept for them."""


def _kind(value: Any, tensors: list[Any]) -> Any:
    """Return a hashable description of arguments, with the tensors among them taken out to `tensors`."""
    if isinstance(value, _TENSORS):
        tensors.append(value)
        return "tensor"
    if isinstance(value, (tuple, list)):
        return (type(value), *[_kind(item, tensors) for item in value])
    if isinstance(value, dict):
        return (dict, *[(key, _kind(item, tensors)) for key, item in value.items()])
    if isinstance(value, CONSTANT):
        return (type(value), value)
    raise _NoKind(f"an argument of type {type(value).__name__}")


def _placeholders(args: Any, kwargs: Any) -> Any:
    numbers = count()

    def placeholder(value: Any) -> Any:
        return Placeholder(f"input_{next(numbers)}") if isinstance(value, _TENSORS) else value

    return map_leaves((args, kwargs), placeholder)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return the plain attributes of a module and its children, which a graph holds as constants.

    Those in lists, dicts and objects among the attributes, such as a configuration, are plain attributes too.
    """
    own = [value for name, value in module.__dict__.items() if name not in OF_EVERY_MODULE and name != "training"]
    children = [
        value for child in module.children() for name, value in child.__dict__.items() if name not in OF_EVERY_MODULE
    ]
    return tuple(_setting(value, depth=3) for value in own + children)


def _setting(value: Any, depth: int) -> Any:
    if isinstance(value, CONSTANT):
        return value
    if depth == 0 or isinstance(value, (Tensor, nn.Module, Rewritten)):
        return None
    if isinstance(value, (tuple, list)):
        return tuple(_setting(item, depth - 1) for item in value) if len(value) <= _LONGEST else None
    values = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return (
        tuple((name, _setting(item, depth - 1)) for name, item in values.items()) if len(values) <= _LONGEST else None
    )


def _refuse_if_computed(module: Any, reason: Exception) -> None:
    """A mask on a computed weight can only be put into a graph."""
    if module.computed_weights:
        name = type(module).__name__
        raise SparsifyError(
            f"{name}: this kind of call cannot be traced, so no mask can be put in: {reason}"
        ) from reason


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _trace_and_add(module: Any, call: Call, key: Any) -> Callable[..., Any]:
    functions = module.masked_forwards.functions
    if key not in functions and len(functions) >= _KINDS:
        del functions[next(iter(functions))]
    try:
        graph = trace_forward(as_original(module), call, training=key[0])
    except TraceFailure as error:
        _refuse_if_computed(module, error)
        functions[key] = (_settings(module), run_on_stand_in)
        return run_on_stand_in  # type: ignore[no-any-return]
    return _add_function(module, graph, key)


def _add_function(module: Any, graph: fx.Graph, key: Any) -> Callable[..., Any]:
    effective = insert_masks(module, graph)
    function = compiled(graph, f"{type(module).__name__}.forward")
    with in_mode(module, key[0]):
        module.masked_forwards.functions[key] = (_settings(module), function)
    known = module.masked_forwards.effective
    # In train mode a weight may be computed at random (DropConnect): that of eval mode goes first.
    known.update({path: compute for path, compute in effective.items() if not key[0] or path not in known})
    return function


def as_original(module: nn.Module) -> nn.Module:
    """Return an object of the module's original class over the same attributes, whose forward is the dense one."""
    cls = original_class(module)
    double: nn.Module = cls.__new__(cls)
    double.__dict__.update(module.__dict__)
    return double
