"""Calls that are recorded as other operations with the same results, for which there are rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Return `F.one_hot`, which reads the values only to check them, as a comparison."""
    if num_classes < 1:
        return F.one_hot(tensor, num_classes)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def padded_around(value: Tensor, pads: Sequence[int]) -> Tensor:
    """Return circular padding as a concatenation, since torch's version writes to parts of a tensor without a rule."""
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        d = value.dim() - 1 - i
        inner = value[(slice(None),) * d + (slice(max(0, -before), value.shape[d] - max(0, -after)),)]
        ends = inner.narrow(d, inner.shape[d] - max(0, before), max(0, before)), inner.narrow(d, 0, max(0, after))
        value = torch.cat([ends[0], inner, ends[1]], d) if before > 0 or after > 0 else inner
    return value
