"""Tracing one module's own forward with torch.fx, its children as leaves.

Tracing runs Python code of the model with proxies. It may leave proxies in caches, add attributes, or meet a function
that cannot take a proxy; what is needed against each is here, so that a trace leaves the model as it was.
"""

from __future__ import annotations

import copy
import inspect
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import ParameterProxy

ATTEMPTS = 24  # functions and classes made leaves before giving up; 3 were enough for every zoo model measured


class TraceFailure(Exception):
    """A forward that cannot be traced; the text is the reason, with file and line where it is known."""


@dataclass(frozen=True)
class Placeholder:
    """Stands for a tensor argument in a `Call`; `name` is unique in it."""

    name: str


@dataclass(frozen=True)
class Call:
    """One kind of call of a forward: constants as they are, a Placeholder for every tensor."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Wrapped:
    """Functions that are recorded as one node instead of being traced into, by the module globals that hold them."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, str], tuple[dict[str, Any], Any]] = {}

    def add(self, namespace: dict[str, Any], name: str) -> None:
        """Make the function called `name` in the globals `namespace` a leaf."""
        self.places[(id(namespace), name)] = (namespace, namespace[name])

    @contextmanager
    def active(self) -> Iterator[None]:
        for (_, name), (namespace, function) in self.places.items():
            namespace[name] = _recording(function)
        try:
            yield
        finally:
            for (_, name), (namespace, function) in self.places.items():
                namespace[name] = function


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate(
            (args, kwargs), lambda value: found.append(value) if isinstance(value, fx.Proxy) else None
        )
        if not found:
            return function(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", function, args, kwargs)

    return record


class LocalTracer(fx.Tracer):
    """Traces the root's own forward; every child is a leaf."""

    def __init__(self, call: Call, *, proxy_buffers: bool) -> None:
        super().__init__()
        self.root_call = call
        self.proxy_buffers = proxy_buffers
        self.paths: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        named = chain(root.named_parameters(), root.named_buffers() if self.proxy_buffers else ())
        self.paths = {id(tensor): path for path, tensor in named}
        return super().trace(root, concrete_args)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        path = self.paths.get(id(attr_val))
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            constant_shape = isinstance(attr_val, nn.Parameter)  # of a parameter, code may branch on the shape
            factory = (lambda node: ParameterProxy(self, node, path, attr_val)) if constant_shape else None
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {}, proxy_factory_fn=factory)
        return parameter_proxy_cache[path]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        def fill(value: Any) -> Any:
            return self.create_proxy("placeholder", value.name, (), {}) if isinstance(value, Placeholder) else value

        args, kwargs = map_leaves(self.root_call.args, fill), map_leaves(self.root_call.kwargs, fill)

        def call(root: nn.Module) -> Any:
            return root_fn(root, *args, **kwargs)

        return call, [self.root]


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to what is not a tuple, list or dict."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_leaves(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    return function(value)


def default_call(forward: Callable[..., Any]) -> Call:
    """Return the plainest call of a method `forward`: a tensor for every argument without a default."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    args = tuple(Placeholder(p.name) for p in required if p.kind in positional)
    return Call(args, {p.name: Placeholder(p.name) for p in required if p.kind is inspect.Parameter.KEYWORD_ONLY})


def trace_forward(module: nn.Module, call: Call, *, training: bool) -> fx.Graph:
    """Return the graph of the module's own forward for one kind of call, children as leaves; the module is unchanged.

    Raises TraceFailure if the forward cannot be traced, or if its graph would freeze something that the forward
    computes anew each time: a random number, a tensor made in the forward, an attribute it assigns.
    """
    failure = TraceFailure("not tried")
    for proxy_buffers in (True, False):
        wrapped = Wrapped()
        for _ in range(ATTEMPTS):
            try:
                return _trace_once(LocalTracer(call, proxy_buffers=proxy_buffers), module, wrapped, training=training)
            except TraceFailure as error:
                failure = error
                break
            except Exception as error:  # noqa: BLE001 - the model's own code raises whatever it likes on a proxy
                failure = TraceFailure(describe(error))
                if not wrap_innermost(error, wrapped):
                    break
    raise failure


def _trace_once(tracer: fx.Tracer, module: nn.Module, wrapped: Wrapped, *, training: bool) -> fx.Graph:
    mode, before, generators = module.training, _attributes(module), _generators()
    with unchanged(module), wrapped.active():
        module.training = training
        graph = tracer.trace(module)
        module.training = mode
        after = _attributes(module)
    if _generators() != generators:
        raise TraceFailure("draws random numbers in Python code")
    assigned = [name for name in after if name not in before or after[name] is not before[name]]
    frozen = [name for name in assigned if name.startswith("_tensor_constant")]
    if frozen:
        raise TraceFailure("makes a tensor of constants in its forward")
    if assigned:
        raise TraceFailure(f"assigns self.{assigned[0]} in its forward")
    return graph


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name != "training"}


def _generators() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=True)
    return random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back every module's attributes, and the dicts and lists among them, when the block ends."""
    saved = []
    for module in model.modules():
        containers = {k: copy.copy(v) for k, v in module.__dict__.items() if isinstance(v, (dict, list))}
        saved.append((module, dict(module.__dict__), containers))
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in containers.items():
                container = attributes[name]
                container.clear()
                container.update(content) if isinstance(container, dict) else container.extend(content)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]


def _outside(frame: FrameType) -> bool:
    """Whether a frame is the model's own code, not torch's or ours."""
    name = str(frame.f_globals.get("__name__", ""))
    return not (name.startswith("torch.") or name == "torch" or name.startswith("sparsify."))


def describe(error: BaseException) -> str:
    """Return the error in one line, with the file and line of the model's code that it comes from."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    frames = _frames(error)
    own = [place for place in frames if _outside(place[0])]
    layers = [place for place in frames if str(place[0].f_globals.get("__name__")).startswith("torch.nn.modules")]
    if not own and not layers:
        return text
    frame, line = (own or layers)[-1]
    return f"{text} ({'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{line}, in {frame.f_code.co_name})"


def wrap_innermost(error: BaseException, wrapped: Wrapped) -> bool:
    """Make the innermost function that its caller found by a global name a leaf; return whether there was one."""
    frames = [frame for frame, _ in _frames(error)]
    for caller, callee in reversed(list(pairwise(frames))):
        if not _outside(callee) or not _outside(caller):
            continue
        name = callee.f_code.co_name
        function = caller.f_globals.get(name)
        code = getattr(inspect.unwrap(function), "__code__", None) if inspect.isfunction(function) else None
        if code is callee.f_code and (id(caller.f_globals), name) not in wrapped.places:
            wrapped.add(caller.f_globals, name)
            return True
    return False
