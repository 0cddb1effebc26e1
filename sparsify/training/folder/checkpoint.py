"""Checkpoints: everything a run needs to go on to the same bits, in one safetensors file.

A state is a tree of dicts, lists, tuples, numbers, strings, None, dtypes and tensors. The tensors go into the file as
they are, the tree as JSON into its metadata: one file with checksums, replaced by one rename, and reading it executes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import SparsifyError, one_line
from ...formats.file.container import Header, Part, checksums, container_chunks, open_file, read_header, read_part
from ...formats.io.atomic import atomic_write
from ...formats.model.dtypes import TORCH_DTYPES, bits, dtype_name, from_bits
from ...preserve import cpu_random_state, set_cpu_random_state
from ...processes.shards import copy_into, sharded_like

# The first version had no checksums.
VERSIONS = ("1", "2")

_DTYPES = frozenset(TORCH_DTYPES.values())
_DTYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to `path`, whole or not at all.

    Raises SparsifyError if the state holds something that is neither plain nor a tensor, RunError if the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "state", tensors)
    metadata = {"sparsify_checkpoint": VERSIONS[-1], "state": json.dumps(tree)}
    parts = [
        Part(name, dtype_name(tensor), tuple(tensor.shape), partial(bits, tensor)) for name, tensor in tensors.items()
    ]
    atomic_write(path, container_chunks(parts, metadata))


def read_state(path: Path) -> dict[str, Any]:
    """Return the state that `write_state` put there, tensors on the CPU, every checksum verified.

    Raises SparsifyError, one line, if the file is missing, damaged or not a checkpoint of ours.
    """
    if not path.exists():
        raise SparsifyError(f"{path}: no such checkpoint")
    try:
        header = read_header(path)
        if header.metadata.get("sparsify_checkpoint") in VERSIONS:
            return _read(path, header)
    except (SparsifyError, ValueError, KeyError, TypeError, RecursionError) as error:
        # Where there are no checksums, damage shows when the tree is built.
        reason = str(error).removeprefix(f"{path}: ")
        raise SparsifyError(f"{path}: damaged checkpoint ({reason})") from error
    raise SparsifyError(f"{path}: not a checkpoint of this version of sparsify")


def read_step(path: Path) -> int | None:
    """Return the step at which the checkpoint at `path` was written, None if its header is damaged."""
    try:
        header = read_header(path)
        state = json.loads(header.metadata["state"])["dict"]
        [step] = [value for key, value in state if key == "step"]
    except (SparsifyError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and header.sealed is not False else None


def _read(path: Path, header: Header) -> dict[str, Any]:
    if not (header.sealed or header.metadata["sparsify_checkpoint"] == VERSIONS[0] and header.sealed is None):
        raise ValueError("its header does not agree with its checksum")
    wanted, tensors = checksums(header), {}
    with open_file(path) as file:
        for name, entry in header.entries.items():
            content = read_part(file, header, name, wanted.get(name))
            tensors[name] = from_bits(content, entry.dtype, entry.shape)
    state = _unpack(json.loads(header.metadata["state"]), tensors)
    if not isinstance(state, dict):
        raise ValueError("its state is no mapping")
    return state


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor) and not value.is_meta and value.dtype in _DTYPES and value.layout == torch.strided:
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # Pairs, because JSON would turn an optimiser's whole-number keys into strings.
        return {"dict": [[key, _pack(item, f"{where}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, torch.dtype) and value in _DTYPES:
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SparsifyError(f"a checkpoint cannot hold {where}: it is a {type(value).__name__}")


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return _DTYPES_BY_NAME[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator: Python's, NumPy's, torch's on the CPU and on each GPU."""
    python, (name, keys, position, has_gauss, gauss), cpu = cpu_random_state()
    return {
        "python": python,
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": cpu,
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "xpu": torch.xpu.get_rng_state_all() if torch.xpu.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every global random generator to a state from `random_state`."""
    name, keys, *rest = state["numpy"]
    set_cpu_random_state((state["python"], (name, keys.numpy().astype(np.uint32), *rest), state["torch"]))
    # A run may resume on a machine with another number of GPUs: those that exist are set.
    for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one, index)
    for index, one in enumerate(state.get("xpu", [])[: torch.xpu.device_count()]):
        torch.xpu.set_rng_state(one, index)
    for one in state.get("mps", []) if torch.backends.mps.is_available() else []:
        torch.mps.set_rng_state(one)


def set_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state in place; a tensor shaped like its parameter gets that parameter's memory format.

    The memory format matters for bits: an optimiser that computes norms sums in memory order.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and not value.is_meta and value.shape == parameter.shape:
                entries[name] = copy_into(torch.empty_like(parameter.detach(), dtype=value.dtype), value)


def set_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a model's parameters, buffers and masks in place; raises SparsifyError if they are another model's.

    The state is of whole tensors; a model in parts takes its own part of each.
    """
    own = model.state_dict()
    try:
        model.load_state_dict({name: sharded_like(own.get(name), value) for name, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise SparsifyError(f"the checkpoint does not fit the recipe's model: {one_line(error)}") from None
