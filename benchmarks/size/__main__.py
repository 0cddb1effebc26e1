"""Bytes of sparse files, ours in every encoding and those of other tools, and how fast ours are written and read.

    python -m benchmarks.size [--rounds 5] [--networks cifar:vgg19_bn ...] [--sparsities 0.5 0.8 ...]

The networks have random weights, pruned by magnitude. Every file holds everything that its network's state has; a
weight that an encoding cannot represent takes the file's smallest. Needs the package zstandard. All rows go to
size.csv, the summary to results.md.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import sparsify
from sparsify.export.save import read_state, save
from sparsify.formats.codec.bitpack import ones
from sparsify.formats.codec.weight_encodings import ENCODINGS, Choice, choose
from sparsify.formats.file.inspection import limit
from sparsify.formats.types import Array, Shape
from sparsify.pruning.pruner import Pruner
from sparsify.surgery.mask_state.masks import get_masks

from ..record import environment, record
from .summary import summary

ROWS = Path(__file__).parent / "size.csv"
NETWORKS = ("cifar:vgg19_bn", "timm:resnet50", "timm:vit_small_patch16_224")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
WIDTHS = {"float32": 4, "float16": 2}


def main() -> None:
    """Measure the networks and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for spec in given.networks:
        for scope in ("layer", "global"):
            for sparsity in given.sparsities:
                model = pruned(spec, scope, sparsity)
                for dtype in WIDTHS:
                    about = {"network": spec, "scope": scope, "sparsity": sparsity, "dtype": dtype}
                    rows.append(about | measure(model, dtype, given.rounds))
                    print(rows[-1])
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    versions = environment("numpy", "torch", "timm", "zstandard", threads=1)
    record("size", f"{versions}\n\n{summary(rows)}")


def pruned(spec: str, scope: str, sparsity: float) -> nn.Module:
    """Return the network with random weights of which that fraction is masked."""
    torch.manual_seed(0)
    model = sparsify.build_model(spec)
    sparsify.convert(model)
    Pruner(model, {"sparsity": sparsity, "scope": scope}, total_steps=0).start()
    return model.eval()


def measure(model: nn.Module, dtype: str, rounds: int) -> dict[str, Any]:
    """Return bytes of each kind of file, and megabytes of dense tensors per second of processor time."""
    import zstandard

    masks = {name: mask.numpy() for name, mask in get_masks(model).items()}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        found: dict[str, Any] = {"dense": save(model, path, format="dense", dtype=dtype)}
        content = path.read_bytes()
        plain = sum(_bytes(tensor, dtype) for name, tensor in _state(model).items() if name not in masks)
        by_layout = {
            "limit": lambda mask, width: limit(mask.size, int(mask.sum()), width),
            "csr": csr_bytes,
            "compressed_tensors": compressed_tensors_bytes,
            "escapes": escapes_bytes,
        }
        for kind, size in by_layout.items():
            found[kind] = plain + math.ceil(sum(size(mask, WIDTHS[dtype]) for mask in masks.values()))
        found["zip"], found["zstd"] = zipped(content), len(zstandard.compress(content, 3))
        for encoding in ENCODINGS:
            if encoding != "raw":
                with mock.patch("sparsify.formats.model.stored_tensors.choose", forced(encoding)):
                    found[encoding] = save(model, path, dtype=dtype)
        found["sparsify"] = save(model, path, dtype=dtype)
        megabytes = found["dense"] / 1e6
        found["write"] = megabytes / seconds(lambda: save(model, path, dtype=dtype), rounds)
        found["read"] = megabytes / seconds(lambda: read_state(path), rounds)
    return found


def forced(encoding: str) -> Callable[..., Choice]:
    """Return a replacement for `choose` that takes this encoding wherever it can represent the mask."""

    def take(name: str, mask: Array, shape: Shape, width: int, *, raw: bool = False) -> Choice:
        row = ENCODINGS[encoding]
        stream = row.codec.encode(mask, shape)
        if stream is None or raw:
            return choose(name, mask, shape, width, raw=raw)
        return Choice(encoding, shape, None if row.suffix is None else stream)

    return take


def csr_bytes(mask: Array, width: int) -> int:
    """Return the bytes of torch's CSR with int32 indices of the weight as a matrix of its output units."""
    kept, units = int(mask.sum()), int(mask.shape[0])
    return kept * (width + 4) + 4 * (units + 1)


def compressed_tensors_bytes(mask: Array, width: int) -> int:
    """Return the bytes of `sparse-bitmask` of compressed-tensors 0.14.0.1: each last dimension is a row of its own."""
    lines: int = math.prod(mask.shape[:-1])
    row = (int(mask.shape[-1]) + 7) // 8
    return int(mask.sum()) * width + lines * (row + 8) + 8 * int(mask.ndim)


def escapes_bytes(mask: Array, width: int) -> int:
    """Return the bytes of gaps of b bits, of which the highest is an escape, for the best b."""
    positions = np.concatenate(list(ones(mask.reshape(-1))))
    gaps = np.diff(positions, prepend=-1) - 1
    codes = [bits * int((1 + gaps // ((1 << bits) - 1)).sum()) for bits in range(1, 9)]
    return positions.size * width + (min(codes) + 7) // 8


def zipped(content: bytes) -> int:
    """Return the bytes of a zip file of it, deflated at the usual level."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", content)
    return len(file.getvalue())


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Return the median processor time of some calls: user and system time, without waiting for a disk."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return median(times)


def _state(model: nn.Module) -> dict[str, Tensor]:
    hidden = {f"{name}_mask" for name in get_masks(model)}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in hidden}


def _bytes(tensor: Tensor, dtype: str) -> int:
    return tensor.numel() * (WIDTHS[dtype] if tensor.is_floating_point() else tensor.element_size())


if __name__ == "__main__":
    main()
