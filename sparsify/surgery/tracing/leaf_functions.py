"""Leaf functions of a trace, each recorded as one node, found from the errors of a trace (fx.wrap on demand)."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn


class Wrapped:
    """Functions to record as one node instead of tracing into them, by the globals that hold them."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, str], tuple[dict[str, Any], Any]] = {}

    def add(self, namespace: dict[str, Any], name: str) -> None:
        """Make the function `name` of the globals `namespace` a leaf."""
        self.places[(id(namespace), name)] = (namespace, namespace[name])

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record calls of these functions and of custom autograd functions as one node each, inside the block."""
        for (_, name), (namespace, function) in self.places.items():
            namespace[name] = _recording(function)
        try:
            with patch.object(torch.autograd.Function, "apply", classmethod(_recorded_apply)):
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


_APPLY: Any = vars(torch.autograd.Function)["apply"]


def _recorded_apply(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """Stand in for `Function.apply` in a trace, to record a custom autograd function as one node."""
    if function.__module__.startswith("torch."):
        return _APPLY.__get__(None, function)(*args, **kwargs)
    return _recording(_applied(function))(*args, **kwargs)


@cache
def _applied(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    def apply(*args: Any, **kwargs: Any) -> Any:
        return function.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = f"{function.__name__}_apply"
    apply.__module__ = function.__module__
    return apply


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]


def _outside(frame: FrameType) -> bool:
    """Return whether a frame is the model's own code, not torch's or ours."""
    name = str(frame.f_globals.get("__name__", ""))
    return not (name.startswith("torch.") or name == "torch" or name.startswith("sparsify."))


def describe(error: BaseException) -> str:
    """Return an error's first line, with the file and line of the model's code that raised it."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    frames = _frames(error)
    own = [place for place in frames if _outside(place[0])]
    layers = [place for place in frames if str(place[0].f_globals.get("__name__")).startswith("torch.nn.modules")]
    if not own and not layers:
        return text
    frame, line = (own or layers)[-1]
    return f"{text} ({'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{line}, in {frame.f_code.co_name})"


def wrap_innermost(error: BaseException, wrapped: Wrapped) -> bool:
    """Make the innermost failing function that was called by a global name a leaf; return whether there was one."""
    frames = [frame for frame, _ in _frames(error)]
    for caller, callee in reversed(list(pairwise(frames))):
        if not _outside(callee) or not _outside(caller):
            continue
        name = callee.f_code.co_name
        function = caller.f_globals.get(name)
        code = getattr(inspect.unwrap(function), "__code__", None) if inspect.isfunction(function) else None
        if (
            code is callee.f_code
            and not _reads_parameters(callee)
            and (id(caller.f_globals), name) not in wrapped.places
        ):
            wrapped.add(caller.f_globals, name)
            return True
    return False


def _reads_parameters(callee: FrameType) -> bool:
    """Return whether a function got a module that owns parameters: as one node it would hide that it reads them."""
    given = [callee.f_locals.get(name) for name in callee.f_code.co_varnames[: callee.f_code.co_argcount]]
    return any(isinstance(value, nn.Module) and value._parameters for value in given)
