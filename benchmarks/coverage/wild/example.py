"""A small model with random weights and two inputs for it; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsify.calls import Inputs


class Wild(NamedTuple):
    """A model, an example of its input, and another one."""

    model: nn.Module
    example: Inputs
    other: Inputs


Builder = Callable[[], Wild]


def noise(*shape: int) -> Tensor:
    """Return normal noise, always the same for a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens(batch: int, length: int, vocabulary: int = 90) -> Tensor:
    """Return token ids, always the same for a shape."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


def images(model: nn.Module, size: int = 64, other: int = 96, channels: int = 3, **rest: Any) -> Wild:
    """Return a model of images with one of `size` pixels a side, and two of `other`."""
    return Wild(model, Inputs(noise(1, channels, size, size), **rest), Inputs(noise(2, channels, other, other), **rest))
