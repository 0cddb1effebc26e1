"""Random inputs (tokens, images, sound) of the sizes that a transformers model declares in its configuration."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Inputs

_TOKENS = 12  # positions: few, but more than a model's patch or window
_SAMPLES = 4000  # a quarter of a second of sound at 16 kHz


def declared_inputs(model: nn.Module, count: int, *, image_size: int | None = None) -> Inputs | None:
    """Return a batch of `count` random inputs (from a fixed seed) as keyword arguments, None for other models.

    `image_size` overrides that of the configuration. An encoder-decoder also gets decoder tokens, and a vision-language
    model both images and tokens.
    """
    config: Any = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    if not hasattr(config, "model_type") or not isinstance(main, str):
        return None
    generator = torch.Generator().manual_seed(0)
    text, image = (getattr(config, name, None) or config for name in ("text_config", "vision_config"))

    def tokens() -> Tensor:
        return torch.randint(2, max(3, text.vocab_size), (count, _TOKENS), generator=generator)

    def noise(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    found: dict[str, Tensor] = {}
    if main == "pixel_values" or hasattr(config, "vision_config"):
        height, width = _pair(image_size or getattr(image, "image_size", None) or 224)
        found["pixel_values"] = noise(getattr(image, "num_channels", 3), height, width)
    if main == "input_values":
        found[main] = noise(_SAMPLES)
    if main == "input_features" and config is not None:
        found[main] = noise(config.num_mel_bins, 2 * getattr(config, "max_source_positions", 50))
    if main == "input_ids":
        found[main] = tokens()
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = tokens()
    if found and "use_cache" in inspect.signature(model.forward).parameters:
        # Cached keys and values would be outputs, whose sizes must stay, so that no head could be removed.
        return Inputs(**found, use_cache=False)
    return Inputs(**found) if found else None


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return int(height), int(width)
