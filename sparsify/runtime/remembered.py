"""The ways that tuning found, kept on the disk: the next engine of the same weights need not time them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import torch
from torch import Tensor, nn

from ..errors import SparsifyError
from .tuning import Way

_MOST = 1000  # entries


def folder() -> Path:
    """Return where they are: SPARSIFY_CACHE, or sparsify in the user's folder for caches."""
    given = os.environ.get("SPARSIFY_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsify"


def machine() -> dict[str, Any]:
    """Return the machine and the libraries that seconds depend on, plain JSON."""
    from .. import __version__

    return {
        "cpu": llvm.get_host_cpu_name(),
        "cores": os.cpu_count(),
        "sparsify": __version__,
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def key(model: nn.Module, inputs: Sequence[Tensor], threads: int) -> str:
    """Return what a way depends on: machine, libraries, threads, sizes of inputs, sizes and zeros of weights."""
    weights = [(name, list(p.shape), int(p.count_nonzero())) for name, p in model.named_parameters()]
    text = [
        [*machine().values(), threads],
        [list(x.shape) for x in inputs],
        repr(model),
        weights,
    ]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def recall(name: str) -> Way | None:
    """Return the way that was kept under this key, None if there is none that can be read."""
    return way_of(_read().get(name), "tuned before")


def keep(name: str, way: Way) -> None:
    """Keep a way under this key; where nothing can be written it is found anew next time."""
    from ..formats.atomic import atomic_write

    found = {**_read(), name: as_table(way)}
    latest = dict(list(found.items())[-_MOST:])
    with contextlib.suppress(OSError, SparsifyError):
        folder().mkdir(parents=True, exist_ok=True)
        atomic_write(folder() / "tuning.json", json.dumps(latest).encode())


def as_table(way: Way) -> dict[str, Any]:
    """Return a way as plain JSON."""
    return {"kind": way.kind, "images": way.images, "dense": sorted(way.dense)}


def way_of(found: Any, why: str) -> Way | None:
    """Return the way that decoded JSON tells, None if it tells none."""
    if not isinstance(found, dict) or found.get("kind") not in ("torch", "split", "chunks"):
        return None
    images, dense = found.get("images"), found.get("dense")
    if type(images) is not int or images < (found["kind"] == "chunks") or not isinstance(dense, list):
        return None
    return Way(found["kind"], images, frozenset(map(str, dense)), why=why)


def _read() -> dict[str, Any]:
    try:
        found = json.loads((folder() / "tuning.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
