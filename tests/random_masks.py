"""Random masks, for tests that need a pruned model but no pruning."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

import sparsify

Model = TypeVar("Model", bound=nn.Module)


def randomly_masked(model: Model, keep: float, **options: Any) -> Model:
    """Return `model`, converted with `options`, with masks that keep each entry with probability `keep`."""
    sparsify.convert(model, **options)
    sparsify.set_masks(model, {name: torch.rand(mask.shape) < keep for name, mask in sparsify.get_masks(model).items()})
    return model
