"""A warning if the other package that is imported as `sparsify` is installed too."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution


@cache
def warn_of_namesake() -> None:
    """Warn, once per process, if the package `sparsify` of the package index is installed besides this library."""
    try:
        other = distribution("sparsify")
    except PackageNotFoundError:
        return
    warnings.warn(
        f"another tool called sparsify ({other.version}) is installed as well, with the same import name: files of the "
        "two overwrite each other; keep one: pip uninstall sparsify sparsify-torch, then install sparsify-torch again",
        stacklevel=3,
    )
