"""Trace cache: modules of equal structure and settings share the fx traces of their forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .own_graphs import CONSTANT, OF_EVERY_MODULE, OwnGraphs, as_original, own_graphs

_LARGEST = 1 << 22  # bytes: larger buffers are not compared


class _UnknownError(Exception):
    """A module holds a value that its forward may depend on but that cannot be compared."""


def graphs_like(module: nn.Module, known: dict[Any, OwnGraphs]) -> OwnGraphs:
    """Return the traced forwards of a module: those of an equal module in `known`, else new ones, added to `known`."""
    try:
        key = _described(module, {})
    except _UnknownError:
        return own_graphs(module)
    if key in known:
        return OwnGraphs(as_original(module), known[key].graphs, [], "")
    traced = own_graphs(module)
    if not traced.failure:
        known[key] = traced
    return traced


def _described(module: nn.Module, seen: dict[int, int]) -> Any:
    """Return a key of everything that a forward's graph can depend on, which leaves out the values of parameters."""
    plain = [(name, _value(value)) for name, value in module.__dict__.items() if name not in OF_EVERY_MODULE]
    parameters = [(name, _tensor(tensor, seen)) for name, tensor in module._parameters.items()]
    buffers = [(name, _tensor(tensor, seen), _content(tensor)) for name, tensor in module._buffers.items()]
    children = [(n, None if child is None else _described(child, seen)) for n, child in module._modules.items()]
    return type(module), tuple(plain), tuple(parameters), tuple(buffers), tuple(children)


def _value(value: Any) -> Any:
    if isinstance(value, CONSTANT):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), *map(_value, value)
    if isinstance(value, dict):
        return dict, *((_value(key), _value(item)) for key, item in value.items())
    raise _UnknownError


def _tensor(tensor: Tensor | None, seen: dict[int, int]) -> Any:
    if tensor is None:
        return None
    if is_lazy(tensor):
        raise _UnknownError
    number = seen.setdefault(id(tensor), len(seen))  # equal for a shared tensor
    return number, type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _content(buffer: Tensor | None) -> bytes:
    """Return the bytes of a buffer: code may branch on its values."""
    if buffer is None:
        return b""
    if buffer.device.type != "cpu" or buffer.nbytes > _LARGEST or type(buffer) is not Tensor:
        raise _UnknownError
    return buffer.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
