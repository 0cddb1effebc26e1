"""The formulas and tables of trainings in several processes."""

from typing import Any

import torch

from benchmarks.processes.formulas import check_lines, hash_bytes, histogram_bytes, past_this_machine, wire
from benchmarks.processes.tables import cost_lines, same_lines
from benchmarks.processes.worker import PRUNINGS

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
    runs = {name: {"masks": {"0.weight": mask}, "losses": [loss]} for name in PRUNINGS}
    return [{"ddp": runs, "fsdp": runs, "costs": COSTS} for _ in range(size)]


def test_formulas_by_hand() -> None:
    assert histogram_bytes() == 2 * 65536 * 8 + 16  # two passes over float32
    assert hash_bytes(3) == 112
    assert wire(8.0, 2) == 8.0 and wire(8.0, 4) == 12.0
    text = "\n".join(past_this_machine())
    assert "| mask, resident | 834 | 104 | 13 |" in text  # 7e9 / 8 / 2^20


def test_tables_show_what_differs() -> None:
    text = "\n".join(same_lines({1: found(1), 2: found(2, 1.5)}))
    assert text.count("1 entries; 5.0e-01") == 6 and "DIFFER" not in text
    mixed = found(2)
    mixed[1] = found(1)[0]
    assert "DIFFER" in "\n".join(same_lines({1: found(1), 2: mixed}))
    assert "| 2 | 2.00 | 0.0100 | 0.50% | 0.100 | 0.200 | 10.0% |" in cost_lines({2: found(2)})
    assert "| mask, bytes | E / N, whole rows | 50: 50 |" in check_lines({2: found(2)})
