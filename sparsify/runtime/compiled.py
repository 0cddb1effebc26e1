"""Numba's compilation, with a cache that knows when any of the files of kernels has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numba

# What compiled code is made of: kernels, and the constants and code generation that they take in.
SOURCES = (
    "columns",
    "compiled",
    "functions",
    "kernels",
    "layout",
    "moving",
    "norms",
    "pointwise",
    "poolings",
    "primitives",
    "simd",
)


def fingerprint(folder: Path = Path(__file__).parent) -> bytes:
    """Return a digest of the sources in a folder."""
    return hashlib.sha256(b"\0".join((folder / f"{name}.py").read_bytes() for name in SOURCES)).digest()


_FINGERPRINT = fingerprint()


def njit(**options: Any) -> Callable[[FunctionType], Any]:
    """Return numba.njit with these options, whose cache also asks whether the fingerprint is the same.

    Numba's own cache looks at the function's file alone, and would keep code that was compiled with another file's
    older constants and functions. It does tell functions apart by what their closures hold.
    """

    def decorate(function: FunctionType) -> Any:
        code = function.__code__
        code = code.replace(co_freevars=(*code.co_freevars, "fingerprint"))
        cells = (*(function.__closure__ or ()), CellType(_FINGERPRINT))
        keyed = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
        keyed.__doc__, keyed.__module__, keyed.__qualname__ = (
            function.__doc__,
            function.__module__,
            function.__qualname__,
        )
        return numba.njit(**options)(keyed)

    return decorate
