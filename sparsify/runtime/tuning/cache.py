"""The cache of tuned strategies on disk, for the next engine of the same weights."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import torch
from torch import nn

from ...errors import CacheWarning, SparsifyError
from ...formats.io.atomic import atomic_write
from ..cache_folder import folder
from ..call_inputs import Shapes
from ..kernels.simd import WIDTH
from .search import Strategy

_MOST = 1000  # entries
_FORM = 3  # version of the entries: others are ignored
_said: set[str] = set()  # warnings already given in this process


def machine() -> dict[str, Any]:
    """Return the machine and the libraries that timings depend on, as plain JSON."""
    from ... import __version__

    return {
        "cpu": llvm.get_host_cpu_name(),
        "cores": os.cpu_count(),
        "sparsify": __version__,
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def key(model: nn.Module, inputs: Shapes, threads: int) -> str:
    """Return a hash of what a strategy depends on: machine, libraries, threads, inputs, sizes and zeros of weights."""
    weights = [(name, list(p.shape), int(p.count_nonzero())) for name, p in model.named_parameters()]
    text = [_FORM, [*machine().values(), WIDTH, threads], inputs, repr(model), weights]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def recall(name: str) -> Strategy | None:
    """Return the cached strategy for a key, None if there is none; a damaged entry gives a CacheWarning."""
    found = _read()
    strategy = strategy_of(found.get(name), "tuned before")
    if name in found and strategy is None:
        _say(f"{_path()}: what tuning found is damaged, and is found anew: an entry says no strategy")
    return strategy


def keep(name: str, strategy: Strategy) -> None:
    """Cache a strategy under a key; if the cache cannot be written, a CacheWarning says so."""
    if str(folder()) == os.devnull:
        return
    found = {**_read(), name: to_json(strategy)}
    latest = dict(list(found.items())[-_MOST:])
    try:
        folder().mkdir(parents=True, exist_ok=True)
        atomic_write(_path(), json.dumps(latest).encode())
    except (OSError, SparsifyError) as error:
        _say(f"what tuning found cannot be kept, and is found anew by the next engine: {error}")


def to_json(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy as plain JSON."""
    return {"kind": strategy.kind, "images": strategy.images, "dense": sorted(strategy.dense)}


def strategy_of(found: Any, why: str) -> Strategy | None:
    """Return the strategy in decoded JSON, None if it is invalid."""
    if not isinstance(found, dict) or found.get("kind") not in ("torch", "split", "chunks"):
        return None
    images, dense = found.get("images"), found.get("dense")
    if type(images) is not int or images < (found["kind"] == "chunks") or not isinstance(dense, list):
        return None
    return Strategy(found["kind"], images, frozenset(map(str, dense)), why=why)


def _path() -> Path:
    return folder() / "tuning.json"


def _read() -> dict[str, Any]:
    try:
        content = _path().read_bytes()
    except OSError:
        return {}  # no cache yet; any other reason shows when it is written
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        found = error
    if isinstance(found, dict):
        return found
    _say(f"{_path()}: what tuning found is damaged, and is found anew: {'no table' if content else 'it is empty'}")
    return {}


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        warnings.warn(" ".join(line.split()), CacheWarning, stacklevel=2)
