"""Partial graphs of forwards that cannot be traced, used to find weights on some of their paths and never run.

Values that a trace does not have are assumed: a condition is tried both ways, a loop over a tensor runs once, a number
is 1. If a trace still fails, its graph up to the failure is used.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from torch.fx.proxy import ParameterProxy

from .leaf_functions import Wrapped, wrap_innermost
from .one_forward import ATTEMPTS, LocalTracer, TraceFailure, default_call, trace_once

_PATHS = 16  # paths followed in each mode
_TURNS = 4  # turns of a loop with a condition
_LONGEST = 64  # turns of a loop over a parameter

Place = tuple[str, int]  # file and line
Answers = dict[Place, bool]


def partial_graphs(module: nn.Module) -> Iterator[fx.Graph]:
    """Yield graphs of some paths of a module's forward; they must not run, and may be incomplete.

    `module` is an object of its original class; constants that the graphs read become its attributes.
    """
    for training in (True, False):
        wrapped = Wrapped()
        waiting: list[Answers] = [{}]
        known: set[Place] = set()
        for answers in waiting:  # grows inside the loop
            graph, asked = _partial_graph(module, answers, wrapped, training)
            if graph is not None:
                yield graph
            more = [place for place in asked if place not in known]
            known.update(more)
            waiting += [answers | {place: True} for place in more][: max(0, _PATHS - len(waiting))]


def _partial_graph(
    module: nn.Module, answers: Answers, wrapped: Wrapped, training: bool
) -> tuple[fx.Graph | None, list[Place]]:
    """Return the graph of one path, or None, and the places of the conditions on that path."""
    for _ in range(ATTEMPTS):
        tracer = _Tracer(default_call(type(module).forward), answers)
        try:
            return trace_once(tracer, module, wrapped, training=training), tracer.asked
        except TraceFailure:
            break
        except Exception as error:  # noqa: BLE001 - the model's own code raises whatever it likes on a proxy
            if not wrap_innermost(error, wrapped):
                break
    module.__dict__.update((name, tensor) for tensor, name in tracer.tensor_attrs.items() if "." not in name)
    return getattr(tracer, "graph", None), tracer.asked


class _Tracer(LocalTracer):
    """Assumes values for proxies: conditions by their place (False without an answer), loops and numbers."""

    def __init__(self, call: Any, answers: Answers) -> None:
        super().__init__(call, proxy_buffers=True)
        self.answers = answers
        self.asked: list[Place] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        frame = sys._getframe(1)
        while str(frame.f_globals.get("__name__", "")).split(".")[0] in ("torch", "sparsify") and frame.f_back:
            frame = frame.f_back
        place = (frame.f_code.co_filename, frame.f_lineno)
        self.asked.append(place)
        return self.answers.get(place, False) and self.asked.count(place) <= _TURNS

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        items: Any = obj
        length = min(len(obj.param), _LONGEST) if isinstance(obj, ParameterProxy) else 1
        return iter([items[i] for i in range(length)])


class _Value(fx.Proxy):
    """A proxy with length 1 and value 1."""

    def __len__(self) -> int:
        return 1

    def __index__(self) -> int:
        return 1

    def __float__(self) -> float:
        return 1.0

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})
