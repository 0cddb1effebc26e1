"""The command line. Each command imports what it needs when it runs, so that help and mistakes answer at once."""

from __future__ import annotations

from .main import main as main
