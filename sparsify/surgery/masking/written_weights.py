"""Keep what a forward writes in place to an effective weight (clipping, renormalisation)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ... import ops
from ..mask_state.live_masks import bool_mask
from ..module_walk import owner_of

Stamp = tuple[int, int]


def stamps(weights: Mapping[str, Tensor]) -> dict[str, Stamp]:
    """Return {path: stamp}, which changes if the effective weight is written to; {} in a trace or transform."""
    if any(isinstance(weight, Proxy) for weight in weights.values()) or ops.is_transformed():
        return {}
    return {path: _stamp(weight) for path, weight in weights.items() if type(weight) is Tensor}


def _stamp(weight: Tensor) -> Stamp:
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()


@torch.no_grad()
def keep_written(module: nn.Module, weights: Mapping[str, Tensor], before: Mapping[str, Stamp]) -> None:
    """Copy to the parameters of `module`, in place, what was written to their effective weights since `before`.

    Stored values under the mask stay.
    """
    for path, stamp in before.items():
        weight = weights[path]
        if _stamp(weight) != stamp:
            owner, name = owner_of(module, path)
            parameter = owner.get_parameter(name)
            if parameter.shape == weight.shape:
                parameter.data.copy_(torch.where(bool_mask(owner, name), weight, parameter))
            else:
                parameter.data = weight.detach()
