"""Small configurations, with random weights, of models that people train, for the `wild` table.

Each is a function that returns a model, an example input, and one of another batch and, where the model takes one, of
another size. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
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


def _images(model: nn.Module, size: int = 64, other: int = 96, channels: int = 3, **rest: Any) -> Wild:
    return Wild(model, Inputs(noise(1, channels, size, size), **rest), Inputs(noise(2, channels, other, other), **rest))


_TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=96)
_GROUPED: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_VISION = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32)
_SPEECH = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
)  # fmt: skip
_T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
_W2V = dict(conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2)

# Name -> configuration's class, model's class, changes of the configuration, what it takes.
_TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "BERT": ("BertConfig", "BertForSequenceClassification", _TEXT, "tokens"),
    "DistilBERT": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        dict(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=96),
        "tokens",
    ),
    "GPT-2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        dict(n_embd=32, n_layer=2, n_head=4, vocab_size=96, bos_token_id=1, eos_token_id=2),
        "tokens",
    ),
    "OPT": (
        "OPTConfig",
        "OPTForCausalLM",
        {**_TEXT, **_SPECIAL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        "tokens",
    ),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED, "tokens"),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED, "tokens"),
    "Mistral": ("MistralConfig", "MistralForCausalLM", _GROUPED, "tokens"),
    "Gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_GROUPED, **_SPECIAL}, "tokens"),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}, "tokens"),
    "T5": ("T5Config", "T5ForConditionalGeneration", {**_T5, **_SPECIAL}, "tokens, decoder"),
    "ViT": ("ViTConfig", "ViTForImageClassification", {**_VISION, "patch_size": 8}, "images 32"),
    "Swin": (
        "SwinConfig",
        "SwinForImageClassification",
        dict(image_size=32, patch_size=2, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4),
        "images 32",
    ),
    "SegFormer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        dict(
            hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], decoder_hidden_size=32, num_attention_heads=[1, 2, 2, 4]
        ),
        "images 64 96",
    ),
    "Whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**_SPEECH, **_SPECIAL, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 96, "num_mel_bins": 16}
        | dict(max_source_positions=20, decoder_start_token_id=1),
        "features 40",
    ),
    "Wav2Vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        {**_TEXT, **_W2V, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "CLIP": (
        "CLIPConfig",
        "CLIPModel",
        dict(text_config={**_TEXT, **_SPECIAL}, vision_config={**_VISION, "patch_size": 8}, projection_dim=24),
        "tokens, images 32",
    ),
    "Mamba": ("MambaConfig", "MambaForCausalLM", dict(hidden_size=32, num_hidden_layers=2, vocab_size=96), "tokens"),
}


def _inputs(takes: str, batch: int, other: bool) -> Inputs:
    found: dict[str, Tensor] = {}
    for part in takes.split(", "):
        kind, *sizes = part.split()
        size = int(sizes[-1 if other else 0]) if sizes else 0
        if kind in ("tokens", "text"):
            found["input_ids"] = tokens(batch, 17 if other else 12)
            if kind == "text":  # with its mask: without one some models look for padding
                found["attention_mask"] = torch.ones_like(found["input_ids"])
        elif kind == "decoder":
            found["decoder_input_ids"] = tokens(batch, 9 if other else 7)
        elif kind == "images":
            found["pixel_values"] = noise(batch, 3, size, size)
        elif kind == "features":
            found["input_features"] = noise(batch, 16, size)
            found["decoder_input_ids"] = tokens(batch, 9 if other else 7)
        else:
            found["input_values"] = noise(batch, 1300 if other else 1000)
    return Inputs(**found)


def _transformer(config: str, kind: str, changes: Mapping[str, Any], takes: str) -> Builder:
    def build() -> Wild:
        transformers = import_module("transformers")
        model = getattr(transformers, kind)(getattr(transformers, config)(**changes))
        found = [_inputs(takes, 1, False), _inputs(takes, 2, True)]
        if "use_cache" in signature(model.forward).parameters:  # keys and values as outputs would keep their heads
            found = [Inputs(**one.kwargs, use_cache=False) for one in found]
        return Wild(model, *found)

    return build


def _ultralytics(name: str) -> Builder:
    def build() -> Wild:
        tasks = import_module("ultralytics.nn.tasks")
        kind = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
        return _images(kind(f"{name}.yaml", nc=4, verbose=False))

    return build


def _segmentation(kind: str) -> Builder:
    def build() -> Wild:
        smp = import_module("segmentation_models_pytorch")
        model = getattr(smp, kind)("resnet18", encoder_weights=None, classes=4)
        return _images(model)

    return build


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

BUILDERS: dict[str, Builder] = {
    **{f"transformers {name}": _transformer(*row) for name, row in _TRANSFORMERS.items()},
    **{f"ultralytics {name}": _ultralytics(name) for name in ("yolov8n", "yolov8n-seg", "yolo11n", "yolo11n-seg")},
    **{f"smp {kind}": _segmentation(kind) for kind in ("Unet", "DeepLabV3Plus", "FPN", "MAnet", "UPerNet")},
    "diffusers UNet2D": _diffusers("UNet2DModel", **_BLOCKS, **_UNET2D),
    "diffusers UNet2DCondition": _diffusers("UNet2DConditionModel", **_BLOCKS, **_CONDITION),
    "diffusers AutoencoderKL": _diffusers("AutoencoderKL", **_BLOCKS, **_VAE),
    "diffusers DiT": _diffusers("DiTTransformer2DModel", **_DIT),
}
