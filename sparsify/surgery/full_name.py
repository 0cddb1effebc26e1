"""Qualified names in a model: the module's path, a dot, and the name in the module."""

from __future__ import annotations


def full_name(path: str, name: str) -> str:
    """Return the name in the model of `name` in the module at `path`; the model's own path is ""."""
    return f"{path}.{name}" if path else name
