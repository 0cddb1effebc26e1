"""Trace one module's own forward with torch.fx, with its children as leaves.

Tracing runs the model's Python code on proxies. That code may leave proxies in caches, add attributes, or call a
function that cannot take a proxy. This file and `side_effects` ensure that a trace leaves the model unchanged, and that
a graph that lacks side effects of the forward never runs in its place.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy

from ..side_effects import changed_buffers, changed_contexts, drawn_numbers, in_mode, unchanged
from .bytecode_scan import is_torch
from .leaf_functions import Wrapped, describe, wrap_innermost
from .subgraphs import follow_writes

_STANDARD = sys.stdlib_module_names  # the modules of Python itself
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
MOST_VARIED = 4  # optional arguments that are varied one at a time
ATTEMPTS = 24  # functions and classes made leaves before giving up; 3 were enough for every zoo model measured


class TraceFailure(Exception):
    """A forward cannot be traced; the message is the reason, with file and line if known.

    `graph`, with the `constants` created for it, is set if the graph shows what the forward computes but must not run.
    """

    def __init__(self, reason: str, graph: fx.Graph | None = None, constants: dict[str, Tensor] | None = None) -> None:
        super().__init__(reason)
        self.graph = graph
        self.constants = constants or {}


@dataclass(frozen=True)
class Placeholder:
    """A tensor argument of a `Call`, with a name that is unique in the call."""

    name: str


@dataclass(frozen=True)
class Call:
    """One kind of call of a forward: its arguments, with a Placeholder for every tensor."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _tensors_by_class(module: nn.Module) -> Iterator[None]:
    """Make isinstance and torch.is_tensor in the code of a module's class treat proxies as tensors, in the block."""
    example = torch.empty(0, device="cpu")

    def is_instance(value: Any, classes: Any) -> bool:
        return isinstance(value, classes) or (isinstance(value, fx.Proxy) and isinstance(example, classes))

    own = {cls.__module__ for cls in type(module).__mro__ if not is_torch(cls)} & (sys.modules.keys() - _STANDARD)
    with ExitStack() as patches:
        for name in own:
            patches.enter_context(patch.object(sys.modules[name], "isinstance", is_instance, create=True))
        patches.enter_context(patch.object(torch, "is_tensor", lambda value: is_instance(value, Tensor)))
        yield


class _Watched:
    """Mixin for the proxies of a local trace; reports attributes that the forward sets on tensors."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "param", "name"):
            self.tracer.lost.append(f"sets .{name} of a tensor")  # type: ignore[attr-defined]
        super().__setattr__(name, value)


class _Value(_Watched, fx.Proxy):
    pass


class _ParameterValue(_Watched, ParameterProxy):
    def __len__(self) -> int:
        return len(self.param)


class LocalTracer(fx.Tracer):
    """Traces the root's own forward; every child is a leaf. `lost` lists side effects that the graph lacks."""

    def __init__(self, call: Call, *, proxy_buffers: bool) -> None:
        super().__init__()
        self.lost: list[str] = []
        self.root_call = call
        self.proxy_buffers = proxy_buffers
        self.paths: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        named = chain(root.named_parameters(), root.named_buffers() if self.proxy_buffers else ())
        self.paths = {id(tensor): path for path, tensor in named}
        return super().trace(root, concrete_args)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the proxy of a parameter (or buffer) of the root, one per tensor; other values unchanged."""
        path = self.paths.get(id(attr_val))
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            constant_shape = isinstance(attr_val, nn.Parameter)  # code may branch on a parameter's shape
            factory = (lambda node: _ParameterValue(self, node, path, attr_val)) if constant_shape else None
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {}, proxy_factory_fn=factory)
        return parameter_proxy_cache[path]

    def create_arg(self, a: Any) -> Any:
        if (
            isinstance(a, nn.Parameter) and id(a) not in self.paths
        ):  # of a module that the root holds without being its parent
            name = self.tensor_attrs.setdefault(a, f"_tensor_constant_outside{len(self.tensor_attrs)}")
            self.root.__dict__[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return a function of the root that makes the recorded call, with a placeholder for each of its tensors."""

        def fill(value: Any) -> Any:
            return self.create_proxy("placeholder", value.name, (), {}) if isinstance(value, Placeholder) else value

        args, kwargs = map_leaves(self.root_call.args, fill), map_leaves(self.root_call.kwargs, fill)

        def call(root: nn.Module) -> Any:
            return root_fn(root, *args, **kwargs)

        return call, [self.root]


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to every leaf of nested tuples, lists and dicts."""
    if type(value) is list or type(value) is tuple:
        return type(value)([map_leaves(item, function) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    return function(value)


def default_call(forward: Callable[..., Any]) -> Call:
    """Return the call of a method `forward` with a tensor for every argument that has no default.

    A forward without required positional arguments that takes `*args` gets one tensor for them.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    args = tuple(Placeholder(p.name) for p in required if p.kind in positional)
    if not args:
        args = tuple(Placeholder(p.name) for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL)
    return Call(args, {p.name: Placeholder(p.name) for p in required if p.kind is inspect.Parameter.KEYWORD_ONLY})


def kinds_of_call(forward: Callable[..., Any]) -> list[tuple[Call, bool]]:
    """Return (call, whether gradients are on) pairs that may take different branches, the default call first.

    Optional tensors are left out, all given, and given one at a time; flags are inverted one at a time.
    """
    plainest = default_call(forward)
    by_name = [p for p in list(inspect.signature(forward).parameters.values())[1:] if p.kind in BY_NAME]
    optional = [p.name for p in by_name if p.default is None]
    calls = [plainest]
    for names in [optional, *([name] for name in optional[:MOST_VARIED] if len(optional) > 1)] if optional else ():
        calls.append(Call(plainest.args, plainest.kwargs | {name: Placeholder(name) for name in names}))
    fullest = calls[: 1 + bool(optional)]
    flags = [p for p in by_name if isinstance(p.default, bool)][:MOST_VARIED]
    turned = [Call(call.args, call.kwargs | {flag.name: not flag.default}) for call in fullest for flag in flags]
    return [(call, True) for call in calls + turned] + [(call, False) for call in fullest]


def trace_forward(module: nn.Module, call: Call, *, training: bool) -> fx.Graph:
    """Return the graph of the module's own forward for one kind of call, children as leaves; the module is unchanged.

    Raises TraceFailure if the forward cannot be traced, or has effects that a graph does not record: it draws random
    numbers or creates a tensor at each call, assigns or changes an attribute, turns gradients off or changes precision.
    """
    failure = TraceFailure("not tried")
    for proxy_buffers in (True, False):
        wrapped = Wrapped()
        for _ in range(ATTEMPTS):
            try:
                return trace_once(LocalTracer(call, proxy_buffers=proxy_buffers), module, wrapped, training=training)
            except TraceFailure as error:
                failure = error if failure.graph is None else failure
                break
            except Exception as error:  # noqa: BLE001 - the model's own code raises whatever it likes on a proxy
                failure = TraceFailure(describe(error)) if failure.graph is None else failure
                if not wrap_innermost(error, wrapped):
                    break
    raise failure


def trace_once(tracer: LocalTracer, module: nn.Module, wrapped: Wrapped, *, training: bool) -> fx.Graph:
    """Return the graph that `tracer` makes of the module's forward, with the functions in `wrapped` as leaves.

    Raises whatever the forward raises, and TraceFailure if the forward has effects that the graph does not record.
    """
    lost = tracer.lost
    with in_mode(module, training), unchanged(module) as changes, wrapped.active(), ExitStack() as watched:
        watched.enter_context(_tensors_by_class(module))
        for effect in (drawn_numbers, changed_contexts):
            watched.enter_context(effect(lost))
        if not tracer.proxy_buffers:
            watched.enter_context(changed_buffers(module, lost))
        graph = tracer.trace(module)
        follow_writes(graph)
        constants = {name: value for name, value in module.__dict__.items() if name.startswith("_tensor_constant")}
        changed = [name for name in changes() if name not in constants]
    if constants:
        lost.append("makes a tensor of constants in its forward")
    if changed:
        lost.append(f"changes self.{changed[0]} in its forward")
    if lost:
        raise TraceFailure(lost[0], graph, constants)
    return graph
