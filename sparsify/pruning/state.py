"""A pruner's state as a flat dict of numbers, strings and tensors, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import SparsifyError

VERSION = 1


def pack(plain: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return `plain` and the tensors of each group under "group/name", copied, as one dict."""
    tensors = {f"{group}/{name}": tensor.clone() for group, named in groups.items() for name, tensor in named.items()}
    return {"version": VERSION, **plain, **tensors}


def unpack(
    state: Mapping[str, Any], plain: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the plain values and the groups of tensors of a state that `pack` made.

    `plain` and `groups` say what a state of this pruner holds: the names and types of its plain values, of which
    "settings" must be equal, and for each group tensors of the right shapes; a group may also be absent as a whole.
    Raises SparsifyError for anything missing, unknown, of another shape, or made by other settings.
    """
    if state.get("version") != VERSION:
        raise SparsifyError(f"pruner state: version {state.get('version')!r}; this sparsify reads version {VERSION}")
    found: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for key, value in state.items():
        group, _, name = key.partition("/")
        if group in groups and name:
            expected = groups[group].get(name)
            if expected is None or not isinstance(value, Tensor) or value.shape != expected.shape:
                raise SparsifyError(f"pruner state: '{key}' fits no weight of this model")
            found[group][name] = value
        elif key != "version" and key not in plain:
            raise SparsifyError(f"pruner state: unknown entry '{key}'")
    for key, example in plain.items():
        if not isinstance(state.get(key), type(example)):
            raise SparsifyError(f"pruner state: '{key}' is missing or no {type(example).__name__}")
    for group, named in found.items():
        missing = [name for name in groups[group] if name not in named]
        if named and missing:
            raise SparsifyError(f"pruner state: '{group}/{missing[0]}' is missing")
    _same_settings(state["settings"], plain["settings"])
    return {key: state[key] for key in plain}, found


def _set(settings: Any) -> Any:
    """Return settings without those that are None: a version that did not know them meant the same."""
    if not isinstance(settings, dict):
        return settings
    return {key: _set(value) for key, value in settings.items() if value is not None}


def _same_settings(saved: str, present: str) -> None:
    was, now = _set(json.loads(saved)), _set(json.loads(present))
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            raise SparsifyError(
                f"pruner state: it was saved with {key} {was.get(key)!r}, this pruner has {now.get(key)!r}"
            )
