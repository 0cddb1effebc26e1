"""Building the model that a file names, with limits, so that a small file cannot claim much memory or time."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from ...errors import SparsifyError
from ...models import build_model
from ...preserve import keep_random_states
from ...transformers_models import CONFIG, PREFIX, check_configuration
from ..file.metadata import FETCHING, NOT_ARGUMENTS, Contents
from ..types import Shape
from .model_state import check_fit

# A model may create more tensors than it ends with: heads that it replaces, tables that are not stored.
_TIMES, _MORE_ENTRIES, _MORE_TENSORS = 4, 2**24, 2000
_LARGEST_NUMBER = 1_000_000


class _TooLarge(SparsifyError):
    """The model that a file names is far larger than what the file holds."""


def build_named(path: str | os.PathLike[str], contents: Contents) -> nn.Module:
    """Return the model that the file names, in training mode, on the CPU, with initial values.

    It is first built on the meta device, and its tensors compared with the file's. Raises SparsifyError, one line, if
    the file names no model, if its arguments would download or read anything else, and if the model has other tensors
    than the file.
    """
    where, spec = os.fspath(path), contents.metadata.spec
    if spec is None:
        raise SparsifyError(f"{where}: the file does not name its model; pass the model to load it into")
    arguments = dict(contents.metadata.arguments)
    _check_arguments(where, arguments)
    if spec.startswith(f"{PREFIX}:"):
        _check_configuration(where, arguments)
    elif spec.count(":") > 1:
        # timm would follow such a name to a repository or a folder; a file must not choose what is downloaded.
        raise SparsifyError(f"{where}: the file's model, {spec!r}, is no name of a zoo's model")
    shapes = {name: shape for name, shape in contents.shapes.items() if name not in contents.cuts.added}
    shapes = {name: contents.cuts.original(name, shape) or shape for name, shape in shapes.items()}
    with _bounded(where, spec, shapes):
        skeleton = _without_memory(spec, arguments)
        if skeleton is not None:
            wanted = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            check_fit(where, skeleton.state_dict(), wanted)
        return build_model(spec, **arguments)


def _check_configuration(where: str, arguments: dict[str, Any]) -> None:
    """Raise SparsifyError unless the arguments contain a whole configuration, so that nothing else has to be read."""
    if not isinstance(arguments.get(CONFIG), dict):
        raise SparsifyError(
            f"{where}: the file does not hold its model's configuration; pass the model to load it into"
        )
    check_configuration(where, arguments)


def _check_arguments(where: str, arguments: dict[str, Any]) -> None:
    foreign = [key for key in arguments if key in NOT_ARGUMENTS or (key in FETCHING and arguments[key] is not None)]
    if foreign:
        raise SparsifyError(f"{where}: the file's model arguments may not contain {', '.join(foreign)}")
    large = [key for key, value in arguments.items() if any(abs(n) > _LARGEST_NUMBER for n in _integers(value))]
    if large:
        raise SparsifyError(f"{where}: the file's model argument {large[0]} is beyond {_LARGEST_NUMBER:,}")


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        # Maximum sequence lengths may be large without a tensor of that size; `_bounded` limits the tensors.
        for item in (v for k, v in value.items() if not k.startswith("max_")) if isinstance(value, dict) else value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def _without_memory(spec: str, arguments: dict[str, Any]) -> nn.Module | None:
    """Return the model on the meta device; None if it cannot be built there."""
    try:
        with keep_random_states(), torch.device("meta"):
            return build_model(spec, **arguments)
    except _TooLarge:
        raise
    except Exception:  # the build on the CPU, which follows, raises the error
        return None


@contextmanager
def _bounded(where: str, spec: str, shapes: dict[str, Shape]) -> Iterator[None]:
    """Raise SparsifyError while a model is being built with far more entries or tensors than `shapes` have."""
    most = _TIMES * sum(map(math.prod, shapes.values())) + _MORE_ENTRIES
    most_tensors = _TIMES * len(shapes) + _MORE_TENSORS
    thread, made = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        made[0] += tensor.numel()
        made[1] += 1
        if made[0] > 2 * most or made[1] > 2 * most_tensors:  # it is built twice
            raise _TooLarge(f"{where}: the file's model, {spec!r} with its arguments, is far larger than the file")

    with ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(count).remove)
        yield
