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


def key(model: nn.Module, inputs: Sequence[Tensor], threads: int) -> str:
    """Return what a way depends on: machine, libraries, threads, sizes of inputs, sizes and zeros of weights."""
    from .. import __version__

    weights = [(name, list(p.shape), int(p.count_nonzero())) for name, p in model.named_parameters()]
    text = [
        [llvm.get_host_cpu_name(), os.cpu_count(), __version__, torch.__version__, numba.__version__, threads],
        [list(x.shape) for x in inputs],
        repr(model),
        weights,
    ]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def recall(name: str) -> Way | None:
    """Return the way that was kept under this key, None if there is none that can be read."""
    found = _read().get(name)
    if not isinstance(found, dict) or found.get("kind") not in ("torch", "split", "chunks"):
        return None
    images, dense = found.get("images"), found.get("dense")
    if type(images) is not int or images < (found["kind"] == "chunks") or not isinstance(dense, list):
        return None
    return Way(found["kind"], images, frozenset(map(str, dense)), why="tuned before")


def keep(name: str, way: Way) -> None:
    """Keep a way under this key; where nothing can be written it is found anew next time."""
    from ..formats.atomic import atomic_write

    found = {**_read(), name: {"kind": way.kind, "images": way.images, "dense": sorted(way.dense)}}
    latest = dict(list(found.items())[-_MOST:])
    with contextlib.suppress(OSError, SparsifyError):
        folder().mkdir(parents=True, exist_ok=True)
        atomic_write(folder() / "tuning.json", json.dumps(latest).encode())


def _read() -> dict[str, Any]:
    try:
        found = json.loads((folder() / "tuning.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
