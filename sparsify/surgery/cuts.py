"""What a shrink removed, as data: enough to do the same to a fresh model of the same class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cuts:
    """What was taken out of a model.

    `removed` maps names of the `state_dict` to {dimension: sorted indices removed}; `attributes` maps dotted paths
    ("layer1.0.conv1.out_channels") to their new values; `added` names parameters that were not there before (a bias
    that takes in the constant output of removed units).
    """

    removed: dict[str, dict[int, tuple[int, ...]]]
    attributes: dict[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()
