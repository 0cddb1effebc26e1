"""Checkpoints: everything a run needs to go on to the same bits, in one safetensors file.

A state is a tree of dicts, lists, tuples, numbers, strings, None and tensors. The tensors go into the file as they are,
the tree as JSON into its metadata: one file, replaced by one rename, and reading it executes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import SparsifyError
from ...formats.io.atomic import atomic_write

VERSION = 1

_TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to `path`, whole or not at all.

    Raises SparsifyError if the state holds something that is neither plain nor a tensor, RunError if the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "state", tensors)
    metadata = {"sparsify_checkpoint": str(VERSION), "state": json.dumps(tree)}
    atomic_write(path, _safetensors_chunks(tensors, metadata))


def read_state(path: Path) -> dict[str, Any]:
    """Return the state that `write_state` put there, tensors on the CPU.

    Raises SparsifyError if the file is missing, damaged or not a checkpoint of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("sparsify_checkpoint") != str(VERSION):
                raise SparsifyError(f"{path}: not a checkpoint of this version of sparsify")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise SparsifyError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise SparsifyError(f"{path}: damaged checkpoint ({error})") from None
    state: dict[str, Any] = _unpack(json.loads(metadata["state"]), tensors)
    return state


def _safetensors_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | np.ndarray]:
    """Yield the bytes of a safetensors file one tensor at a time.

    safetensors' own writer needs all of them at once in memory, and refuses tensors that share theirs. The wide types
    come first, so that every tensor starts at a multiple of its element's size.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, tensor in ordered:
        yield tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor) and value.dtype in _TYPES and value.layout == torch.strided:
        tensors[where] = value.detach()
        return {"tensor": where}
    if isinstance(value, Mapping):
        # Pairs, because JSON would turn an optimiser's whole-number keys into strings.
        return {"dict": [[key, _pack(item, f"{where}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SparsifyError(f"a checkpoint cannot hold {where}: it is a {type(value).__name__}")


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator: Python's, NumPy's, torch's on the CPU and on each GPU."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every global random generator to a state from `random_state`."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    # A run may go on on a machine with another number of GPUs: those that exist are set.
    for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one, index)


def set_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state in place, each tensor shaped like its parameter laid out in memory like it.

    The layout matters for bits: an optimiser that takes norms sums in memory order.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a model's parameters, buffers and masks in place; raises SparsifyError if they are another model's."""
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SparsifyError(f"the checkpoint does not fit the recipe's model: {reason[:300]}") from None
