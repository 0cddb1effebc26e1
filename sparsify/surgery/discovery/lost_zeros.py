"""Whether zeros in a stored parameter are zeros in the weight that a forward computes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..tracing.subgraphs import ancestors
from .node_kinds import is_metadata

Through = Mapping[fx.Node, Callable[[Tensor], Tensor]]
_LEAST_ZEROS = 0.2  # of a weight computed from parameters of which every other entry is zero


def passes_by(source: fx.Node, core: fx.Node) -> bool:
    """Return whether values of `source` reach a result of the forward without passing through `core`."""
    seen = {source, core}
    waiting = [source]
    while waiting:
        for user in waiting.pop().users:
            if user.op == "output":
                return True
            if user not in seen and not is_metadata(user):
                seen.add(user)
                waiting.append(user)
    return False


def loses_zeros(core: fx.Node, shapes: Mapping[fx.Node, torch.Size], value: Callable[[Through], Any]) -> bool:
    """Return whether the weight computed at `core` has few zeros if every other entry of its parameters is zero.

    `shapes` are those of the parameters, and `value` returns the weight if these go through the given functions.
    Parameters of another size than the weight's (factors) are not asked.
    """
    weight = value({})
    behind = ancestors(core, modules=False)
    alike = {
        source: _halved for source, shape in shapes.items() if source in behind and shape.numel() == weight.numel()
    }
    if not alike or weight.is_meta or weight.numel() < 2:
        return False
    try:
        halved = value(alike)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # no inverse, no Cholesky factor
        return True
    return float((halved == 0).double().mean()) < _LEAST_ZEROS


def _halved(parameter: Tensor) -> Tensor:
    """Return a parameter with about every other entry zero, and no others."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu") < 0.5
    return torch.where(kept.to(parameter.device), torch.where(parameter == 0, 1, parameter), 0)
