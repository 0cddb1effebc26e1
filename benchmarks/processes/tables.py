"""Tables of trainings in several processes held against one's, and of what masks cost in a step."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch

from .worker import PRUNINGS

Found = dict[int, list[dict[str, Any]]]


def same_lines(found: Found) -> list[str]:
    """Return a table of masks and losses by number of processes, for DDP (`sparsify train`) and fully_shard."""
    lines = [
        "A network of two convolutions and two linear layers without batch norm on digits, 36 steps of 128 images, "
        "90 % removed. Masks at the end: their hash, and entries that differ from one process's; losses: the largest "
        "relative difference from one process's.",
        "",
        "| | pruning | " + " | ".join(f"{size} process{'es' if size > 1 else ''}" for size in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    for engine, named in (("ddp", "DDP"), ("fsdp", "fully_shard")):
        for pruning in PRUNINGS:
            cells = [_cell(found, engine, pruning, size) for size in found]
            lines.append(f"| {named} | {pruning} | {' | '.join(cells)} |")
    note = (
        "Where masks differ rounding decided once: sums over other parts of a batch differ in their last bits, and the "
        "gradient of a ReLU, and snip's scores with it, jumps where its input is within these of zero. From there runs "
        "part."
    )
    return [*lines, "", note]


def _cell(found: Found, engine: str, pruning: str, size: int) -> str:
    each = [one[engine][pruning] for one in found[size]]
    hashes = {_hash(one["masks"]) for one in each}
    if len(hashes) > 1:
        return f"masks DIFFER between processes: {hashes}"
    first, alone = each[0], found[min(found)][0][engine][pruning]
    if size == min(found):
        return hashes.pop()
    different = sum(int((mask != alone["masks"][name]).sum()) for name, mask in first["masks"].items())
    loss = max(abs(a - b) / abs(b) for a, b in zip(first["losses"], alone["losses"], strict=True))
    return f"{hashes.pop()}; {different} entries; {loss:.1e}"


def _hash(masks: dict[str, torch.Tensor]) -> str:
    digest = blake2b(digest_size=4)
    for name in sorted(masks):
        digest.update(masks[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def cost_lines(found: Found) -> list[str]:
    """Return a table of what hashes and selections cost beside a step."""
    lines = [
        "`cifar:vgg19_bn`, 128 images shared out, one thread a process: seconds of the processor, and the share of one "
        "step if an update came after every step (a recipe's come after 100).",
        "",
        "| processes | a step | hashes compared | share | selection, whole | selection, sharded | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, each in found.items():
        keys = ("step", "hash", "selection whole", "selection sharded")
        step, hashed, alone, shared = (max(one["costs"][key] for one in each) for key in keys)
        cells = [f"{step:.2f}", f"{hashed:.4f}", f"{hashed / step:.2%}", f"{alone:.3f}", f"{shared:.3f}"]
        lines.append(f"| {size} | {' | '.join(cells)} | {shared / step:.1%} |")
    return lines
