"""Detect the side effects of a forward while it is traced, and undo them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from .module_walk import named_modules

# Contexts that an fx graph does not record: gradient mode, autocast and saved-tensor hooks.
_CONTEXTS = (
    (torch.autograd.grad_mode.set_grad_enabled, "__init__", "turns gradients on or off"),  # no_grad calls it
    (torch.inference_mode, "__enter__", "turns gradients on or off"),
    (torch.autocast, "__enter__", "uses torch.autocast"),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__", "uses activation checkpointing"),
)


@contextmanager
def changed_contexts(lost: list[str]) -> Iterator[None]:
    """Append to `lost` each change that the block makes to gradient mode, autocast and saved-tensor hooks."""
    with ExitStack() as patches:
        for owner, method, what in _CONTEXTS:
            patches.enter_context(patch.object(owner, method, _noting(getattr(owner, method), what, lost)))
        yield


def _noting(method: Callable[..., Any], what: str, lost: list[str]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        lost.append(f"{what} in its forward")
        return method(*args, **kwargs)

    return noted


@contextmanager
def drawn_numbers(lost: list[str]) -> Iterator[None]:
    """Append to `lost` if the block draws random numbers on the CPU, and restore the generators."""
    before = _generators()
    state: Any = np.random.get_state(legacy=True)
    try:
        yield
    finally:
        if _generators() != before:
            lost.append("draws random numbers in Python code")
            random.setstate(before[0])
            np.random.set_state(state)
            torch.set_rng_state(torch.frombuffer(bytearray(before[3]), dtype=torch.uint8))


def _generators() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=True)
    return random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


@contextmanager
def changed_buffers(module: nn.Module, lost: list[str]) -> Iterator[None]:
    """Append to `lost` for each buffer of the module that the block changes, and restore its values."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers() if not buffer.is_inference()]
    try:
        yield
    finally:
        for buffer, version, values in before:
            if buffer._version != version:
                lost.append("changes a buffer in its forward")
                with torch.no_grad():
                    buffer.copy_(values)


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Run the block with a module and its submodules in train or eval mode; does nothing if the module is in it."""
    modes = [(below, below.training) for below in module.modules()] if module.training != training else []
    for below, _ in modes:
        below.training = training
    try:
        yield
    finally:
        for below, mode in modes:
            below.training = mode


class Attributes(NamedTuple):
    """The attributes of one module, and the contents of the dicts, lists and sets among them."""

    prefix: str
    module: nn.Module
    attributes: dict[str, Any]
    containers: dict[str, list[Any]]


def attributes_of(modules: Iterable[tuple[str, nn.Module]]) -> list[Attributes]:
    """Return the attributes of (path, module) pairs, for `put_back`."""
    saved = []
    for path, module in modules:
        attributes = dict(module.__dict__)
        containers = {k: _content(v) if v else [] for k, v in attributes.items() if isinstance(v, (dict, list, set))}
        saved.append(Attributes(f"{path}." if path else "", module, attributes, containers))
    return saved


def put_back(saved: list[Attributes]) -> None:
    """Restore attributes from `attributes_of`, and the contents of dicts, lists and sets among them."""
    for _, module, attributes, containers in saved:
        module.__dict__.clear()
        module.__dict__.update(attributes)
        for name, content in containers.items():
            container = attributes[name]
            if (container or content) and not _same(container, content):
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Restore every module's attributes, and the dicts, lists and sets among them, when the block ends.

    Yields a function that returns the qualified names of the attributes changed so far.
    """
    saved = attributes_of(named_modules(model))

    def changes() -> list[str]:
        found = []
        for prefix, module, attributes, containers in saved:
            now = module.__dict__
            names = [n for n in {**attributes, **now} if now.get(n, saved) is not attributes.get(n, saved)]
            found += [prefix + n for n in [*names, *(n for n in containers if not _same(attributes[n], containers[n]))]]
        return found

    try:
        yield changes
    finally:
        put_back(saved)


def _content(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same(container: Any, content: list[Any]) -> bool:
    """Return whether a dict, list or set holds the same objects as `content`."""
    if not content or len(container) != len(content):
        return len(container) == len(content)
    if isinstance(container, dict):
        return all(a == b and x is y for (a, x), (b, y) in zip(container.items(), content, strict=True))
    if isinstance(container, set):
        return container == set(content)
    return all(a is b for a, b in zip(container, content, strict=True))
