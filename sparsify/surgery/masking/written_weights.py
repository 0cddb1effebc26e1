"""Weights that a forward changes in place (clipped, renormalised): what it writes to an effective weight is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ... import ops
from ..live_masks import bool_mask

Stamp = tuple[int, int]


def stamps(weights: Mapping[str, Tensor]) -> dict[str, Stamp]:
    """Return by path what tells whether an effective weight was written to since; nothing in a trace or transform."""
    if any(isinstance(weight, Proxy) for weight in weights.values()) or ops.is_transformed():
        return {}
    return {path: _stamp(weight) for path, weight in weights.items() if type(weight) is Tensor}


def _stamp(weight: Tensor) -> Stamp:
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()


@torch.no_grad()
def keep_written(module: nn.Module, weights: Mapping[str, Tensor], before: Mapping[str, Stamp]) -> None:
    """Write to the parameters of `module`, in place, what was written to their effective weights since `before`.

    Entries under the mask keep their values.
    """
    for path, stamp in before.items():
        weight = weights[path]
        if _stamp(weight) != stamp:
            owner_path, _, name = path.rpartition(".")
            owner = module.get_submodule(owner_path)
            parameter = owner.get_parameter(name)
            if parameter.shape == weight.shape:
                parameter.data.copy_(torch.where(bool_mask(owner, name), weight, parameter))
            else:
                parameter.data = weight.detach()
