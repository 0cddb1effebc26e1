"""Taking dead channels out of a model, for the commands that write one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .show import say

if TYPE_CHECKING:
    from torch import Tensor, nn


def random_images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Return images of normal noise, the same ones every time."""
    import torch

    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def shrunk(model: nn.Module, input_shape: tuple[int, ...], round_to: int | None) -> nn.Module:
    """Return the smaller model, with those masks that still remove something, and say what went."""
    from sparsify.surgery.remask import mask_again
    from sparsify.surgery.shrink import shrink

    report = shrink(model, random_images(1, input_shape), round_to=round_to)
    first, *rest = str(report).splitlines()
    say(f"{first}; for one input of {'x'.join(map(str, input_shape))}:", *rest)
    return mask_again(report.model, model, report.cuts)
