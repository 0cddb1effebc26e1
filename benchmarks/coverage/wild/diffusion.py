"""Models of diffusers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from sparsify.calls import Inputs

from .example import Builder, Wild, noise


def _diffusers(kind: str, **changes: Any) -> Builder:
    def build() -> Wild:
        """Return the model with the inputs that its kind takes."""
        model = getattr(import_module("diffusers"), kind)(**changes)
        channels = changes.get("in_channels", 3)
        time, more = torch.tensor([7]), {}
        if kind == "UNet2DConditionModel":
            more = {"encoder_hidden_states": noise(1, 6, 16)}
        if kind == "DiTTransformer2DModel":
            more = {"class_labels": torch.tensor([1])}
        given = {} if kind == "AutoencoderKL" else {"timestep": time, **more}
        larger = {name: torch.cat([value] * 2) for name, value in given.items()}
        size = 16 if kind.startswith("DiT") else 48
        return Wild(
            model,
            Inputs(noise(1, channels, 16, 16) if size == 16 else noise(1, channels, 32, 32), **given),
            Inputs(noise(2, channels, size, size), **larger),
        )

    return build


def _sd3() -> Wild:
    model = import_module("diffusers").SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip

    def given(batch: int, size: int) -> Inputs:
        return Inputs(noise(batch, 4, size, size), noise(batch, 6, 16), noise(batch, 24), torch.full((batch,), 7))

    return Wild(model, given(1, 16), given(2, 24))


def _flux() -> Wild:
    model = import_module("diffusers").FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=16, pooled_projection_dim=24, axes_dims_rope=(2, 2, 4), guidance_embeds=False,
    )  # fmt: skip

    def given(batch: int, length: int) -> Inputs:
        return Inputs(
            hidden_states=noise(batch, length, 4), encoder_hidden_states=noise(batch, 6, 16),
            pooled_projections=noise(batch, 24), timestep=torch.full((batch,), 0.5),
            img_ids=torch.arange(3 * length).reshape(length, 3) % 5, txt_ids=torch.zeros(6, 3),
        )  # fmt: skip

    return Wild(model, given(1, 16), given(2, 24))


def _controlnet() -> Wild:
    model = import_module("diffusers").ControlNetModel(
        in_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8,
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip

    def given(batch: int, size: int) -> Inputs:
        return Inputs(
            noise(batch, 4, size, size),
            torch.full((batch,), 7),
            noise(batch, 6, 16),
            noise(batch, 3, 2 * size, 2 * size),
        )

    return Wild(model, given(1, 16), given(2, 32))


_BLOCKS: dict[str, Any] = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
_UNET2D = dict(
    sample_size=32, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
)
_CONDITION = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=8,
    in_channels=4,
)
_VAE = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
_DIT = dict(num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=16, norm_num_groups=8)

DIFFUSION: dict[str, Builder] = {
    "diffusers UNet2D": _diffusers("UNet2DModel", **_BLOCKS, **_UNET2D),
    "diffusers UNet2DCondition": _diffusers("UNet2DConditionModel", **_BLOCKS, **_CONDITION),
    "diffusers AutoencoderKL": _diffusers("AutoencoderKL", **_BLOCKS, **_VAE),
    "diffusers DiT": _diffusers("DiTTransformer2DModel", **_DIT),
    "diffusers SD3": _sd3,
    "diffusers Flux": _flux,
    "diffusers ControlNet": _controlnet,
}
