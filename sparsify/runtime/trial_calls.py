"""Trial calls of a model, which leave it as it was, and whether a forward keeps a state from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..preserve import keep_random_states
from ..relative_error import relative_error
from ..surgery.module_walk import full_name, named_modules
from ..surgery.side_effects import changed_buffers, unchanged
from .tuning.search import TOLERANCE

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@contextmanager
def trial_calls(model: nn.Module) -> Iterator[None]:
    """Put the attributes and buffers of a model, and the random states, back at the end."""
    with keep_random_states(), unchanged(model), changed_buffers(model, []):
        yield


def kept_state(model: nn.Module, outputs: Callable[[], list[Any]]) -> str:
    """Return why a call of the model is not as the one before it, "" if it is; `outputs` makes a call.

    A program of one call does not stand for the calls of such a model: it counts, remembers or draws numbers.
    """
    first = outputs()
    before = _state(model)
    if relative_error(outputs(), first) > TOLERANCE:
        return "two calls with equal inputs give different outputs"
    after = _state(model)
    changed = [name for name in {**before, **after} if not _alike(before.get(name), after.get(name))]
    return f"its forward keeps a state from one call to the next: {changed[0]}" if changed else ""


def _state(model: nn.Module) -> dict[str, Any]:
    """Return copies of all buffers and attributes, by name; None for objects of other kinds."""
    found: dict[str, Any] = {}
    for path, module in named_modules(model):
        held = {name: value for name, value in module.__dict__.items() if name not in _OF_EVERY_MODULE}
        held |= dict(module.named_buffers(recurse=False))
        found |= {full_name(path, name): _copied(value) for name, value in held.items()}
    return found


def _copied(value: Any, depth: int = 8) -> Any:
    """Return a copy of a value of known kinds, else None; a container may hold itself, which ends at `depth`."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping) and depth:
        return {key: _copied(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and depth:
        return [_copied(item, depth - 1) for item in value]
    return value if type(value) in _PLAIN else None


def _alike(before: Any, after: Any) -> bool:
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_alike(before[key], after[key]) for key in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_alike, before, after))
    return relative_error([after], [before]) <= TOLERANCE
