"""The folder of sparsify's caches: compiled kernels and tuning results."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Return the folder: SPARSIFY_CACHE, or sparsify in the user's cache folder."""
    given = os.environ.get("SPARSIFY_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsify"
