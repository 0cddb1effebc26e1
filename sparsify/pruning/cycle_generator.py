"""The random numbers of a pruner: within a cycle the same at every update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..processes.ranks import Group, gather


class CycleGenerator:
    """A private CPU generator that is rewound to its state at the beginning of the cycle."""

    def __init__(self, source: torch.Generator | None, group: Group = None) -> None:
        """Seed it with one number drawn from `source`, so that rewinding repeats none of its numbers; or with 0.

        Of a `group` of processes the first one's number seeds it on all.
        """
        seed = 0 if source is None else int(torch.randint(2**62, (), generator=source, device=source.device))
        seed = gather(seed, group)[0]
        self.generator = torch.Generator().manual_seed(seed)
        self._start, self._cycle = self.generator.get_state(), 0

    def rewound(self, cycle: int) -> torch.Generator:
        """Return the generator as it was when `cycle` (from 1) was first asked for."""
        if cycle != self._cycle:
            self._start, self._cycle = self.generator.get_state(), cycle
        self.generator.set_state(self._start)
        return self.generator

    def state(self) -> dict[str, Any]:
        """Return its state, for `load`: the entries of a pruner's state that belong to it."""
        states = {"generator": self.generator.get_state(), "cycle_generator": self._start}
        return {"cycle_drawn": self._cycle, **states}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.generator.set_state(state["generator"].cpu())
        self._start, self._cycle = state["cycle_generator"].cpu().clone(), state["cycle_drawn"]
