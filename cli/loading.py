"""A notice on the terminal while PyTorch is imported, which takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import click


class _Announcer:
    """An import hook that finds nothing and prints the notice when PyTorch is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torch":
            sys.meta_path.remove(self)
            click.echo("loading PyTorch …", err=True)
        return None


def announce_torch() -> None:
    """Print a notice on a terminal when this process starts to import PyTorch."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        sys.meta_path.insert(0, _Announcer())
