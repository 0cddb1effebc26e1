"""Models of transformers that take images or sound."""

from __future__ import annotations

from importlib import import_module

from sparsify.calls import Inputs

from .configured import SPECIAL, TEXT, VISION, W2V, Row, configured
from .example import Builder, Wild, images, noise, tokens

_SPEECH = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
)  # fmt: skip
_RESNET = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")

_ROWS: dict[str, Row] = {
    "ViT": ("ViTConfig", "ViTForImageClassification", {**VISION, "patch_size": 8}, "images 32"),
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
    "DINOv2": ("Dinov2Config", "Dinov2ForImageClassification", {**VISION, "patch_size": 8}, "images 32 48"),
    "ConvNeXt": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        dict(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
        "images 32 64",
    ),
    "ResNet": ("ResNetConfig", "ResNetForImageClassification", _RESNET, "images 32 64"),
    "CLIP": (
        "CLIPConfig",
        "CLIPModel",
        dict(text_config={**TEXT, **SPECIAL}, vision_config={**VISION, "patch_size": 8}, projection_dim=24),
        "tokens, images 32",
    ),
    "Whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**_SPEECH, **SPECIAL, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 96, "num_mel_bins": 16}
        | dict(max_source_positions=20, decoder_start_token_id=1),
        "features 40",
    ),
    "Wav2Vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        {**TEXT, **W2V, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "HuBERT": (
        "HubertConfig",
        "HubertForCTC",
        {**TEXT, **W2V, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "VITS": (
        "VitsConfig",
        "VitsModel",
        {**TEXT, "ffn_dim": 64, "flow_size": 16, "spectrogram_bins": 9, "upsample_initial_channel": 32}
        | dict(prior_encoder_num_flows=1, posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1)
        | dict(upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4], duration_predictor_num_flows=1)
        | dict(depth_separable_num_layers=1, use_stochastic_duration_prediction=False, wavenet_kernel_size=3),
        "tokens",
    ),
}


def _encodec() -> Wild:
    transformers = import_module("transformers")
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[2, 2],
        num_lstm_layers=1, target_bandwidths=[96.0], sampling_rate=16000,
    )  # fmt: skip
    return Wild(transformers.EncodecModel(config), Inputs(noise(1, 1, 320)), Inputs(noise(2, 1, 480)))


def _masked_images() -> Wild:
    """What it hides is drawn anew in each call, unless it is given."""
    transformers = import_module("transformers")
    config = transformers.ViTMAEConfig(
        **VISION, patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config)
    return Wild(model, *(Inputs(noise(n, 3, 32, 32), noise=noise(n, 16)) for n in (1, 2)))


def _detr() -> Wild:
    transformers = import_module("transformers")
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_queries=6, d_model=32,
        backbone_config=transformers.ResNetConfig(**_RESNET, out_features=["stage2"]),
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    return images(transformers.DetrForObjectDetection(config), 32, 48)


def _clap() -> Wild:
    transformers = import_module("transformers")
    config = transformers.ClapTextConfig(**TEXT, **SPECIAL, max_position_embeddings=64)
    model = transformers.ClapTextModelWithProjection(config)
    return Wild(model, Inputs(input_ids=tokens(1, 12)), Inputs(input_ids=tokens(2, 17)))


PERCEPTION: dict[str, Builder] = {
    **{f"transformers {name}": configured(*row) for name, row in _ROWS.items()},
    "transformers EnCodec": _encodec,
    "transformers DETR": _detr,
    "transformers ViTMAE": _masked_images,
    "transformers CLAP text": _clap,
}
