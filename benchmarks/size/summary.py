"""The tables of the size benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OURS = ("sparsify", "bitmask", "delta", "units", "whole")
OTHERS = ("escapes", "csr", "compressed_tensors", "zip", "zstd", "dense")
HEADINGS = {
    "sparsify": "the smallest",
    "escapes": "gaps with escapes",
    "csr": "CSR",
    "compressed_tensors": "sparse-bitmask",
    "dense": "dense",
}


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the section of results.md."""
    parts = [_INTRODUCTION]
    for dtype, bits in (("float32", 32), ("float16", 16)):
        chosen = [row for row in rows if row["dtype"] == dtype]
        parts.append(f"Values of {bits} bits, pruned per layer:\n\n{_table(_of(chosen, scope='layer'))}")
        parts.append(f"Values of {bits} bits, pruned globally:\n\n{_table(_of(chosen, scope='global'))}")
    parts.append(f"Megabytes of dense tensors written and read per second of processor time:\n\n{_speeds(rows)}")
    parts.append(_worst(rows))
    return "\n\n".join(parts)


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    kinds = (*OURS, *OTHERS)
    lines = ["| network | sparsity | limit, MB | " + " | ".join(HEADINGS.get(kind, kind) for kind in kinds) + " |"]
    lines.append("|---" * (len(kinds) + 3) + "|")
    for row in rows:
        ratios = " | ".join(f"{row[kind] / row['limit']:.3f}" for kind in kinds)
        lines.append(f"| {row['network']} | {row['sparsity']:.0%} | {row['limit'] / 1e6:.3f} | {ratios} |")
    return "\n".join(lines)


def _speeds(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| network | sparsity | write, 32 bits | read | write, 16 bits, cast | read |", "|---" * 6 + "|"]
    wide, narrow = (_of(rows, scope="layer", dtype=dtype) for dtype in ("float32", "float16"))
    for row, half in zip(wide, narrow, strict=True):
        speeds = " | ".join(f"{found[kind]:.0f}" for found in (row, half) for kind in ("write", "read"))
        lines.append(f"| {row['network']} | {row['sparsity']:.0%} | {speeds} |")
    return "\n".join(lines)


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for dtype in ("float32", "float16"):
        ratios = [r["sparsify"] / r["limit"] for r in rows if r["dtype"] == dtype and 0.8 <= r["sparsity"] <= 0.98]
        if ratios:
            told.append(f"{dtype} {min(ratios):.4f} to {max(ratios):.4f}")
    slowest = [f"{kind} {min(row[kind] for row in rows):.0f}" for kind in ("write", "read")]
    return f"The whole file over the limit, 80 to 98 %: {', '.join(told)}. Slowest, MB/s: {', '.join(slowest)}."


def _of(rows: Iterable[Mapping[str, Any]], **wanted: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


_INTRODUCTION = """\
Networks with random weights, pruned by magnitude. The limit is, for each weight of n entries of which k are kept in b
bits, n H(k/n) + k b bits, and the bytes of all other tensors as they are. Every other column is the bytes of a whole
file with everything in the network's state, headers included, over that limit. *The smallest* is what `sparsify.save`
writes; *bitmask*, *delta*, *units* and *whole* are the same with that one encoding wherever it can tell the mask (none
is *full* or *n:m* here). From their layouts, without headers: *gaps with escapes* of a fixed width, the best for each
weight; *CSR* of torch with int32 indices, a row for each output unit; *sparse-bitmask* of compressed-tensors 0.14.0.1.
*zip* (deflate, level 6) and *zstd* (level 3) are of the dense safetensors file; that they come near the limit, and at
the highest sparsities below it, is because batch norms that were never trained compress to nothing.
All rows, in bytes, are in [size.csv](size/size.csv)."""
