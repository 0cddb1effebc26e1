"""Sparsity and cost of one masked weight, as `summary` and reports show them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class LayerSummary:
    """One masked weight: its shape, its kept entries, and its share of its module's multiply-adds, dense and kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    multiply_adds: int | None = None
    kept_multiply_adds: int | None = None

    @property
    def parameters(self) -> int:
        """The number of the weight's entries."""
        return prod(self.shape)

    @property
    def sparsity(self) -> float:
        """The removed fraction of the entries."""
        return 1 - self.kept / self.parameters if self.parameters else 0.0
