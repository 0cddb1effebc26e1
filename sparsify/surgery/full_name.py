"""Names in a model: those of a module's parts begin with the module's path."""

from __future__ import annotations


def full_name(path: str, name: str) -> str:
    """Return the name in the model of `name` in the module at `path`; the model's own path is ""."""
    return f"{path}.{name}" if path else name
