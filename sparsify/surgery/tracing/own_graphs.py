"""The graphs of one module's own forward, with its children as leaves; the conversion reads them but never runs them.

A graph is valid for one kind of call. Several kinds are traced (train and eval mode, with and without gradients, with
and without optional arguments), to find weights that only some calls read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ..mask_state.masks import original_class
from ..shallow_copies import bind_to, bound_attributes, with_attributes
from .bytecode_scan import mentions_autocast
from .one_forward import (
    BY_NAME,
    MOST_VARIED,
    Call,
    Placeholder,
    TraceFailure,
    default_call,
    kinds_of_call,
    trace_forward,
)

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum)
# Immutable types, whose values can be compared between two modules.
CONSTANT = (*_PLAIN, type, FunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format)
OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


@dataclass(frozen=True)
class OwnGraphs:
    """The graphs of one module's forward, traced on `module`, with its children as leaves.

    `partial` holds incomplete graphs; `failure` says why the default call, without optional arguments, could not be
    traced completely, "" if it could.
    """

    module: nn.Module
    graphs: list[fx.Graph]
    partial: list[fx.Graph]
    failure: str

    @property
    def all(self) -> list[fx.Graph]:
        """All graphs, those of the whole forward first."""
        return [*self.graphs, *self.partial]


def own_graphs(module: nn.Module) -> OwnGraphs:
    """Return the graphs of a module's own forward for the kinds of call that may read different weights."""
    original = as_original(module)
    graphs: list[fx.Graph] = []
    partial: list[fx.Graph] = []
    constants: dict[str, Tensor] = {}
    failure, refused = "", False
    for kind in chain(kinds(original), rarer_kinds(original)):
        if kind.rarer and not refused:
            break
        try:
            graphs.append(trace_kind(original, kind))
        except TraceFailure as error:
            failure = failure or (str(error) if kind.plainest else "")
            refused = bool(failure)
            constants |= error.constants
            if error.graph is not None:
                partial.append(error.graph)
    original.__dict__.update(constants)
    return OwnGraphs(original, graphs, partial, failure)


class Kind(NamedTuple):
    """A kind of call to trace; `plainest`: without optional arguments; `rarer`: only tried if the plainest fails."""

    call: Call
    training: bool
    gradients: bool
    plainest: bool
    autocast: bool = False
    rarer: bool = False


def kinds(module: nn.Module) -> Iterator[Kind]:
    """Yield the kinds of call of a module's own forward that may read different weights, the plainest first."""
    calls = kinds_of_call(type(module).forward)
    for number, (call, gradients) in enumerate(calls):
        for training in (False, True) if gradients else (False,):
            yield Kind(call, training, gradients, number == 0)
    if mentions_autocast(type(module)):
        for call in (calls[0][0], calls[-1][0])[: len(calls) - 1]:  # the optional arguments left out, and given
            yield Kind(call, False, True, False, autocast=True)


def rarer_kinds(module: nn.Module) -> Iterator[Kind]:
    """Yield kinds of call with all optional tensors but one, for forwards that take one of two: ids or embeddings."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    optional = [p.name for p in parameters if p.default is None and p.kind in BY_NAME]
    plainest = default_call(type(module).forward)
    for left_out in optional[:MOST_VARIED] if len(optional) > 2 else ():
        given = {name: Placeholder(name) for name in optional if name != left_out}
        for training in (False, True):
            yield Kind(Call(plainest.args, plainest.kwargs | given), training, True, False, rarer=True)


def trace_kind(original: nn.Module, kind: Kind) -> fx.Graph:
    """Return the graph of one kind of call; raises TraceFailure, with an incomplete graph if there is one."""
    precision = torch.autocast("cpu", torch.bfloat16) if kind.autocast else nullcontext()
    with torch.set_grad_enabled(kind.gradients), precision:
        return trace_forward(original, kind.call, training=kind.training)


def as_original(module: nn.Module) -> nn.Module:
    """Return an object of the module's original class with the same attributes, whose forward is the dense one.

    Its own parameters are new objects that share memory with the module's, so that a trace shows if the forward reads
    the module's parameter in another way (from a closure, a list) than as the attribute that a mask replaces.
    """
    copied = with_attributes(original_class(module), module)
    bind_to(copied, module, bound_attributes(module))
    held = {id(p): p for p in module._parameters.values() if type(p) is nn.Parameter}
    others = {key: nn.Parameter(p.detach(), p.requires_grad) for key, p in held.items()}
    copied.__dict__["_parameters"] = {name: others.get(id(p), p) for name, p in module._parameters.items()}
    return copied
