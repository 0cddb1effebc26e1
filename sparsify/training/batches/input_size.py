"""The images that a model takes, found by running it, since few models declare them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...errors import SparsifyError, one_line
from ...preserve import keep_modes, keep_values

_SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512, 640)


def input_for(model: nn.Module, own: tuple[int, int], *, image_size: int | None = None) -> tuple[int, int]:
    """Return the channels and the size (height = width) of the images for `model`.

    `own` has those of the data. The size is `image_size` if given, else the data's own unless the model refuses it,
    else the smallest that it takes; channels are the data's own unless the model refuses them, else 3 or 1. Raises
    SparsifyError, with the model's error, if it takes none.
    """
    channels_own, size_own = own
    sizes = [image_size] if image_size is not None else smallest_first(model, size_own)
    channels = [channels_own, *(other for other in (3, 1) if other != channels_own)]
    reason: Exception | None = None
    for size in sizes:
        for count in channels:
            refusal = refuses(model, (count, size, size))
            if refusal is None:
                return count, size
            # With the channels that the model was made for, the error is about the size.
            reason = refusal if reason is None or count == 3 else reason
    tried = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    problem = one_line(reason, 200)
    raise SparsifyError(f"data.image_size: the model takes no image of {tried} pixels: {problem}") from reason


def smallest_first(model: nn.Module, own: int) -> list[int]:
    """Return the sizes to try: the data's own, then larger ones, the model's declared size among them."""
    declared = declared_size(model)
    larger = {size for size in (*_SIZES, declared) if size is not None and size > own}
    return [own, *sorted(larger)]


def declared_size(model: nn.Module) -> int | None:
    """Return the image size that a model of timm or torchvision declares, None if it declares none."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return int(config["input_size"][-1])
    size = getattr(model, "image_size", None)
    return size if isinstance(size, int) else None


def refuses(model: nn.Module, shape: Sequence[int]) -> Exception | None:
    """Return the model's exception for two images of `shape` in train or eval mode, None if it takes them.

    Buffers, modes and random states are restored.
    """
    first = next(model.parameters(), torch.zeros(()))
    images = torch.zeros(2, *shape, device=first.device, dtype=first.dtype)
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        with torch.no_grad(), keep_modes(model), keep_values(model.buffers()), torch.random.fork_rng(devices):
            # Train mode first: there, models with auxiliary heads refuse more.
            for mode in (True, False):
                model.train(mode)
                model(images)
    except Exception as error:  # a model may raise anything; the caller gets the reason
        return error
    return None
