"""Global magnitude selection over the 143.7 M weights of timm's vgg19_bn, against torch.nn.utils.prune.

    python -m benchmarks.selection [--rounds 3] [--threads 2]

Each measurement runs in its own process, for its own peak memory, the two alternating. The peer takes about half a
minute and 9 GB per round. Ours also measures later selections of a model, which are most of a ramp's updates.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from .record import environment, record, seconds

SPARSITY = 0.9
OURS_PER_ROUND = 7


def measure_ours() -> dict[str, Any]:
    """Select with sparsify, several times on one model; return seconds, bytes and the share removed."""
    import timm

    from sparsify.pruning.pruner import Pruner
    from sparsify.surgery.conversion.convert import convert

    model = timm.create_model("vgg19_bn")
    convert(model)
    before, times = _peak(), []
    for _ in range(OURS_PER_ROUND):
        pruner = Pruner(model, {"sparsity": SPARSITY, "scope": "global"}, total_steps=0)
        started = time.perf_counter()
        pruner.start()
        times.append(time.perf_counter() - started)
    report = pruner.report()
    return {"seconds": times, "bytes": _peak() - before, "removed": report.removed, "size": report.size}


def measure_peer() -> dict[str, Any]:
    """Select with torch.nn.utils.prune.global_unstructured, once; return seconds, bytes and the share removed."""
    import timm
    import torch
    from torch import nn
    from torch.nn.utils import prune

    model = timm.create_model("vgg19_bn")
    targets = [(module, "weight") for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    before, started = _peak(), time.perf_counter()
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=SPARSITY)
    elapsed = time.perf_counter() - started
    masks: list[torch.Tensor] = [getattr(module, "weight_mask") for module, _ in targets]  # noqa: B009
    removed = sum(int((mask == 0).sum()) for mask in masks)
    size = sum(mask.numel() for mask in masks)
    return {"seconds": [elapsed], "bytes": _peak() - before, "removed": removed, "size": size}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(worker: str, threads: int) -> dict[str, Any]:
    """Return one worker's measurements, made in its own process."""
    command = [sys.executable, "-m", "benchmarks.selection", "--worker", worker, "--threads", str(threads)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=["ours", "peer"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        import torch

        torch.set_num_threads(given.threads)
        print(json.dumps(measure_ours() if given.worker == "ours" else measure_peer()))
        return
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(given.rounds):
        for worker, measured in results.items():
            measured.append(run(worker, given.threads))
    lines = [
        f"Global magnitude selection at {SPARSITY:.0%} over timm vgg19_bn, {results['ours'][0]['size']:,} weights. "
        + environment("torch", "timm", threads=given.threads),
        "",
        "| implementation | time | peak memory on top of the model | removed |",
        "|---|---|---|---|",
    ]
    for worker, name in (("ours", "sparsify"), ("peer", "torch.nn.utils.prune.global_unstructured")):
        times = [value for measured in results[worker] for value in measured["seconds"]]
        memory = max(measured["bytes"] for measured in results[worker]) / 1e9
        lines.append(f"| {name} | {seconds(times)} | {memory:.2g} GB | {results[worker][0]['removed']:,} |")
    record("selection", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
