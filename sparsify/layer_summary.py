"""LayerSummary: one row of `summary` and of reports. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class LayerSummary:
    """One masked weight: its shape, how many entries are kept, and the multiply-adds of its module, all and kept."""

    name: str
    shape: tuple[int, ...]
    kept: int
    multiply_adds: int | None = None
    kept_multiply_adds: int | None = None

    @property
    def parameters(self) -> int:
        """Entries of the weight."""
        return prod(self.shape)

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        return 1 - self.kept / self.parameters if self.parameters else 0.0
