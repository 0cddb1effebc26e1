"""Saying what takes so long before a command can begin: PyTorch takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import click


class _Announcer:
    """A finder of modules that finds nothing, and says so when PyTorch is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torch":
            sys.meta_path.remove(self)
            click.echo("loading PyTorch …", err=True)
        return None


def announce_torch() -> None:
    """Say on a terminal when this process begins to import PyTorch, unless it has."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        sys.meta_path.insert(0, _Announcer())
