"""Tables of training in several processes against one, and of the costs of masks in a step."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch

from .networks import PRUNINGS

Found = dict[int, list[dict[str, Any]]]
_ENGINES = {"ddp": "DDP", "fsdp": "fully_shard"}


def same_lines(found: Found) -> list[str]:
    """Return a table of masks and losses by number of processes, for DDP (`sparsify train`) and fully_shard."""
    lines = [
        "A network of two convolutions and two linear layers without batch norm on digits, 36 steps of 128 images, "
        "90 % removed. Masks at the end: their hash, and entries that differ from one process's; losses: the largest "
        "relative difference from one process's. A recipe computes in float32.",
        "",
        "| | pruning | " + " | ".join(f"{size} process{'es' if size > 1 else ''}" for size in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    for engine, named in _ENGINES.items():
        for pruning in PRUNINGS:
            if pruning in found[min(found)][0][engine]:
                cells = [_cell(found, engine, pruning, size) for size in found]
                lines.append(f"| {named} | {pruning} | {' | '.join(cells)} |")
    return [*lines, "", *_equal_weights_lines(found)]


def _equal_weights_lines(found: Found) -> list[str]:
    """Return a table of masks of single snip updates from equal weights, and a summary of the tables."""
    several = [size for size in found if size > 1]
    lines = [
        "The masks of each update by snip, ReLU and float32, all processes beginning it with the weights and masks of "
        "one process: entries that differ from that process's, of all updates together, and how far the scores of "
        "these lie from the threshold (relative; 1e-5 is what may be).",
        "",
        "| | updates | " + " | ".join(f"{size} processes" for size in several) + " |",
        "|---|---|" + "---|" * len(several),
    ]
    for engine, named in _ENGINES.items():
        each = [found[size][0][engine]["equal weights"] for size in several]
        cells = [f"{one['entries']:.0f} entries; {one['farthest']:.1e}" for one in each]
        lines.append(f"| {named} | {each[0]['updates']:.0f} | {' | '.join(cells)} |")
    note = (
        "Several processes add up a batch in other parts, so that sums differ in their last bits. Where an input of a "
        "ReLU lies within these of zero, its gradient is 0 for some and 1 for others, and the scores of a few weights "
        "jump by more than 1e-5: masks differ there, and training runs part. With GELU, whose gradient does not jump, "
        "it does not happen here, nor in float64."
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
    """Return a table of the costs of hashes and selections against a step."""
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
