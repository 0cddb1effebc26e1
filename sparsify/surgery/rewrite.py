"""Forwards of a module's own: traced by fx with its children as leaves, their conv and linear nodes made masked.

A graph holds for one kind of call (train or eval, which arguments are tensors, the values of the others, the module's
settings). The rewritten module keeps one compiled function for each kind it has met and makes others when they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import SparsifyError
from .graphs import compiled, insert_masks
from .lent import run_on_stand_in
from .masks import original_class
from .tracing import Call, Placeholder, TraceFailure, default_call, map_leaves, trace_forward

_TENSORS = (Tensor, fx.Proxy, Placeholder)
_PLAIN = (bool, int, float, str, type(None))


@dataclass
class Rewritten:
    """The compiled forwards of one module by kind of call, and the computation of its effective weights."""

    functions: dict[Any, tuple[Any, Callable[..., Any]]] = field(default_factory=dict)
    effective: dict[str, Callable[..., Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Rewritten:
        return Rewritten(dict(self.functions), dict(self.effective))

    def __reduce__(self) -> Any:
        return Rewritten, ()  # generated functions do not pickle; they are made again when called


def rewritten_members(original: type[nn.Module]) -> dict[str, Any]:
    """Return the class members that run the masked graphs in place of the original forward."""

    @wraps(original.forward)
    def rewritten(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors: list[Any] = []
        key = (self.training, _kind(args, tensors), _kind(kwargs, tensors))
        settings, function = self.rewritten.functions.get(key, (None, None))
        # torch.compile watches the settings itself: it would only be slowed down by reading all of them.
        if function is None or (not torch.compiler.is_compiling() and settings != _settings(self)):
            function = _trace_and_add(self, Call(*_placeholders(args, kwargs)), key)
        if function is run_on_stand_in:
            return run_on_stand_in(original.forward, self, args, kwargs)
        return function(self, *tensors)

    def compute_effective_weight(self: Any, name: str) -> Tensor:
        if name not in self.rewritten.effective:  # just unpickled
            prepare(self, plain_graphs(self)[0])
        computed: Tensor = self.rewritten.effective[name](self)
        return computed

    return {"forward": rewritten, "compute_effective_weight": compute_effective_weight}


def plain_graphs(module: nn.Module) -> tuple[dict[bool, fx.Graph], str]:
    """Trace the plainest call of a module's own forward, children as leaves.

    Returns the graphs by training mode, and why one of them is missing (or nothing).
    """
    graphs, failure = {}, ""
    original = as_original(module)
    call = default_call(type(original).forward)
    for training in (True, False):
        try:
            graphs[training] = trace_forward(original, call, training=training)
        except TraceFailure as error:
            failure = str(error)
    return graphs, failure


def prepare(module: nn.Module, graphs: dict[bool, fx.Graph]) -> None:
    """Make the functions for the plainest call, so that nothing is traced in a first forward.

    A graph that is missing is of a call that is never made so, a size missing say; the real ones are traced when met.
    """
    call = default_call(original_class(module).forward)
    for training, graph in graphs.items():
        _add_function(module, graph, (training, _kind(call.args, []), _kind(call.kwargs, [])))


def _kind(value: Any, tensors: list[Any]) -> Any:
    """Return a hashable description of arguments, with the tensors among them taken out to `tensors`."""
    if isinstance(value, _TENSORS):
        tensors.append(value)
        return "tensor"
    if isinstance(value, (tuple, list)):
        return (type(value), *[_kind(item, tensors) for item in value])
    if isinstance(value, dict):
        return (dict, *[(key, _kind(item, tensors)) for key, item in value.items()])
    return (type(value), value)


def _placeholders(args: Any, kwargs: Any) -> Any:
    numbers = count()

    def placeholder(value: Any) -> Any:
        return Placeholder(f"input_{next(numbers)}") if isinstance(value, _TENSORS) else value

    return map_leaves((args, kwargs), placeholder)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """Return the plain attributes of a module and its children, which a graph holds as constants."""
    return tuple(
        value
        for owner in (module, *module.children())
        for name, value in owner.__dict__.items()
        if name != "training" and _is_plain(value)
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _trace_and_add(module: Any, call: Call, key: Any) -> Callable[..., Any]:
    try:
        graph = trace_forward(as_original(module), call, training=key[0])
    except TraceFailure as error:
        if module.computed_weights:
            name = type(module).__name__
            raise SparsifyError(
                f"{name}: this kind of call cannot be traced, so no mask can be put in: {error}"
            ) from error
        module.rewritten.functions[key] = (_settings(module), run_on_stand_in)
        return run_on_stand_in  # type: ignore[no-any-return]
    return _add_function(module, graph, key)


def _add_function(module: Any, graph: fx.Graph, key: Any) -> Callable[..., Any]:
    effective = insert_masks(module, graph)
    function = compiled(graph, f"{type(module).__name__}.forward")
    module.rewritten.functions[key] = (_settings(module), function)
    module.rewritten.effective.update(effective)
    return function


def as_original(module: nn.Module) -> nn.Module:
    """Return an object of the module's original class over the same attributes, whose forward is the dense one."""
    cls = original_class(module)
    double: nn.Module = cls.__new__(cls)
    double.__dict__.update(module.__dict__)
    return double
