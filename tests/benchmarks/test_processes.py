"""The formulas and tables of trainings in several processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.processes.formulas import check_lines, hash_bytes, histogram_bytes, past_this_machine, wire
from benchmarks.processes.networks import PRUNINGS, at_equal_weights
from benchmarks.processes.tables import cost_lines, same_lines

from ..ranks import on_ranks

COSTS: dict[str, Any] = {
    "step": 2.0,
    "hash": 0.01,
    "selection whole": 0.1,
    "selection sharded": 0.2,
    "entries": 100,
    "weights": 3,
}
COSTS |= {"mask bytes": 50, "hash bytes": 112, "selection bytes": 1048592, "parameters": 110, "checkpoint files": [270]}


def found(size: int, loss: float = 1.0) -> list[dict[str, Any]]:
    mask = torch.ones(4, dtype=torch.bool)
    mask[0] = size == 1
    runs: dict[str, Any] = {name: {"masks": {"0.weight": mask}, "losses": [loss]} for name in PRUNINGS}
    runs["equal weights"] = {"updates": 36.0, "entries": 3.0, "farthest": 2e-6}
    return [{"ddp": runs, "fsdp": runs, "costs": COSTS} for _ in range(size)]


def test_formulas_by_hand() -> None:
    assert histogram_bytes() == 2 * 65536 * 8 + 16  # two passes over float32
    assert hash_bytes(3) == 112
    assert wire(8.0, 2) == 8.0 and wire(8.0, 4) == 12.0
    text = "\n".join(past_this_machine())
    assert "| mask, resident | 834 | 104 | 13 |" in text  # 7e9 / 8 / 2^20


def test_tables_show_what_differs() -> None:
    text = "\n".join(same_lines({1: found(1), 2: found(2, 1.5)}))
    assert (
        text.count("1 entries; 5.0e-01") == 2 * len(PRUNINGS)
        and "| DDP | 36 | 3 entries; 2.0e-06 |" in text
        and "DIFFER" not in text
    )
    mixed = found(2)
    mixed[1] = found(1)[0]
    assert "DIFFER" in "\n".join(same_lines({1: found(1), 2: mixed}))
    assert "| 2 | 2.00 | 0.0100 | 0.50% | 0.100 | 0.200 | 10.0% |" in cost_lines({2: found(2)})
    assert "| mask, bytes | E / N, whole rows | 50: 50 |" in check_lines({2: found(2)})


def with_equal_weights(rank: int, cut_wrongly: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(6)
    ]
    parts = [(x[8 * rank : 8 * rank + 8], y[8 * rank : 8 * rank + 8]) for x, y in batches]
    if cut_wrongly:
        parts = [(x[:8], y[:8]) for x, y in batches]
    return at_equal_weights(batches, parts, DistributedDataParallel)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_snip_of_two_processes_finds_the_masks_of_one_where_weights_are_equal(tmp_path: Path) -> None:
    found, _ = on_ranks(2, with_equal_weights, tmp_path / "whole", False)
    assert found["updates"] == 6 and found["farthest"] < 1e-5
    other, _ = on_ranks(2, with_equal_weights, tmp_path / "twice", True)  # the same half twice: what tells them apart
    assert other["entries"] > 100 and other["farthest"] > 1e-2
