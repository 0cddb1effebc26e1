"""Memory and traffic of masks in one of many processes, by formula, against measurements."""

from __future__ import annotations

from typing import Any

_PARAMETERS, _WEIGHTS = 7_000_000_000, 225  # a decoder of 32 blocks with 7 matrices each, and a head
_RANKS = (8, 64, 512)
_MIB = 1 << 20


def histogram_bytes(dtype_bytes: int = 4) -> int:
    """Return the bytes that a process passes to all-reduces in one exact selection: 2^16 counts of 8 bytes each time.

    The histograms, one for every 16 bits of a score, and two numbers.
    """
    return dtype_bytes * 8 // 16 * (1 << 16) * 8 + 16


def hash_bytes(weights: int) -> int:
    """Return the bytes of one comparison of hashes: a number and its complement for each weight and three counts."""
    return 2 * 8 * (weights + 3) + 16


def wire(payload: float, ranks: int) -> float:
    """Return the bytes that a process sends, and receives, in a ring all-reduce of `payload`."""
    return 2 * (ranks - 1) / ranks * payload


def check_lines(found: dict[int, list[dict[str, Any]]]) -> list[str]:
    """Return a table of formulas against the counts of each launch's processes, with `cifar:vgg19_bn`."""
    lines = [
        "Formulas beside what was counted, for a process, with `cifar:vgg19_bn`: P parameters, E of them with masks,",
        "on N processes.",
        "",
        "| | formula | N = " + " | N = ".join(map(str, found)) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    rows: list[tuple[str, str, Any]] = [
        ("mask, bytes", "E / N, whole rows", lambda c, n: (c["entries"] / n, c["mask bytes"])),
        (
            "hashes, bytes to all-reduce",
            "16 (W + 3) + 16, W weights",
            lambda c, n: (hash_bytes(c["weights"]), c["hash bytes"]),
        ),
        (
            "sharded selection, bytes to all-reduce",
            "2^16 x 8 for every 16 bits of a score, + 16; 8 for each count of what is removed",
            lambda c, n: (histogram_bytes(), c["selection bytes"]),
        ),
        (
            "checkpoint of weights and masks, bytes",
            "(4 P + E) / N",
            lambda c, n: ((4 * c["parameters"] + c["entries"]) / n, max(c["checkpoint files"])),
        ),
    ]
    for what, formula, row in rows:
        cells = []
        for size, each in found.items():
            expected, counted = row(each[0]["costs"], size)
            cells.append(f"{expected:,.0f}: {counted:,.0f}")
        lines.append(f"| {what} | {formula} | {' | '.join(cells)} |")
    return [*lines, "", "(formula: counted)"]


def past_this_machine() -> list[str]:
    """Return a table for a model of 7 B parameters, all with masks, under fully_shard; computed, not run."""
    p = _PARAMETERS
    rows = [
        ("mask, resident", [p / n for n in _RANKS]),
        ("union mask, in its cycles", [p / n for n in _RANKS]),
        ("weights, gradients, momentum (float32)", [12 * p / n for n in _RANKS]),
        ("checkpoint: weights, momentum, mask, union", [10 * p / n for n in _RANKS]),
        ("masks gathered, sent in each forward", [p * (n - 1) / n for n in _RANKS]),
        ("weights gathered, sent in each forward", [4 * p * (n - 1) / n for n in _RANKS]),
        ("selection, sent in each update", [wire(histogram_bytes(), n) for n in _RANKS]),
        ("hashes under DDP, sent in each update", [wire(hash_bytes(_WEIGHTS), n) for n in _RANKS]),
        ("snip under DDP, sent in each update", [wire(4 * p, n) for n in _RANKS]),
    ]
    head = " | ".join(f"{n} processes" for n in _RANKS)
    lines = [
        f"By the same formulas, MiB a process, for {p / 1e9:g} B parameters in {_WEIGHTS} weights, all with masks. "
        "Nothing of this size was run. A ring all-reduce of s bytes sends 2 (N - 1) / N s.",
        "",
        f"| MiB | {head} |",
        "|---|" + "---|" * len(_RANKS),
    ]
    for what, cells in rows:
        lines.append(f"| {what} | {' | '.join(map(_mib, cells))} |")
    return lines


def _mib(size: float) -> str:
    return f"{size / _MIB:,.3g}" if size < 10 * _MIB else f"{size / _MIB:,.0f}"
