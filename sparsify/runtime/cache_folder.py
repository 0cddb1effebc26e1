"""Where sparsify keeps what takes long to find out."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return the folder: SPARSIFY_CACHE, or sparsify in the user's folder for caches."""
    given = os.environ.get("SPARSIFY_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsify"
