"""Which rule writes the steps of which operation."""

from __future__ import annotations

from typing import Any

import torch

from . import entrywise, weighted
from .lower import Rule

aten = torch.ops.aten
RULES: dict[Any, Rule] = {
    aten.convolution.default: weighted.convolution,
    aten.addmm.default: weighted.linear,
    aten.mm.default: weighted.linear,
    aten.add.Tensor: entrywise.add,
    aten.view.default: entrywise.view,
    aten._unsafe_view.default: entrywise.view,
    aten.clone.default: entrywise.view,
    aten.max_pool2d_with_indices.default: entrywise.pooling("LARGEST"),
    aten.avg_pool2d.default: entrywise.pooling("AVERAGE"),
    aten.mean.dim: entrywise.mean,
    aten.cat.default: entrywise.concatenation,
    **dict.fromkeys(weighted.NORMS, weighted.alone),
    **dict.fromkeys(entrywise.CLAMPS, entrywise.clamp),
}
