"""Further models of the `wild` table, of transformers, diffusers and peft: they share, gate, route or reshape."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calls import Inputs

from .wild_models import _GROUPED, _SPECIAL, _TEXT, _VISION, _W2V, Builder, Wild, _images, _transformer, noise, tokens

_BART = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=96, max_position_embeddings=64, decoder_start_token_id=1,
    forced_eos_token_id=None,
)  # fmt: skip
_RESNET = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1)

# As in wild_models: configuration's class, model's class, changes of the configuration, what it takes.
_TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "RoBERTa": ("RobertaConfig", "RobertaForTokenClassification", {**_TEXT, **_SPECIAL}, "tokens"),
    "DeBERTa-v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64}
        | dict(position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm"),
        "text",
    ),
    "ELECTRA": ("ElectraConfig", "ElectraForPreTraining", {**_TEXT, "embedding_size": 16}, "tokens"),
    "ALBERT": ("AlbertConfig", "AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16}, "tokens"),
    "Falcon": ("FalconConfig", "FalconForCausalLM", {**_TEXT, **_SPECIAL}, "tokens"),
    "Phi": ("PhiConfig", "PhiForCausalLM", {**_TEXT, **_SPECIAL}, "tokens"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_GROUPED, **_SPECIAL, "sliding_window": 8}, "tokens"),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _GROUPED, "tokens"),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_GROUPED, **_MOE}, "tokens"),
    "Bloom": ("BloomConfig", "BloomForCausalLM", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=96), "tokens"),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_TEXT, **_SPECIAL}, "tokens"),
    "BART": ("BartConfig", "BartForConditionalGeneration", {**_BART, **_SPECIAL}, "tokens, decoder"),
    "Pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", {**_BART, **_SPECIAL}, "tokens, decoder"),
    "RWKV": ("RwkvConfig", "RwkvForCausalLM", dict(hidden_size=32, num_hidden_layers=2, vocab_size=96), "tokens"),
    "FalconMamba": (
        "FalconMambaConfig",
        "FalconMambaForCausalLM",
        dict(hidden_size=32, num_hidden_layers=2, vocab_size=96),
        "tokens",
    ),
    "Jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {**_TEXT, "num_key_value_heads": 2, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | dict(mamba_d_state=4, use_mamba_kernels=False),
        "tokens",
    ),
    "DINOv2": ("Dinov2Config", "Dinov2ForImageClassification", {**_VISION, "patch_size": 8}, "images 32 48"),
    "ConvNeXt": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        dict(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
        "images 32 64",
    ),
    "ResNet": ("ResNetConfig", "ResNetForImageClassification", _RESNET, "images 32 64"),
    "HuBERT": (
        "HubertConfig",
        "HubertForCTC",
        {**_TEXT, **_W2V, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "VITS": (
        "VitsConfig",
        "VitsModel",
        {**_TEXT, "ffn_dim": 64, "flow_size": 16, "spectrogram_bins": 9, "upsample_initial_channel": 32}
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
        **_VISION, patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
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
    return _images(transformers.DetrForObjectDetection(config), 32, 48)


def _clap() -> Wild:
    transformers = import_module("transformers")
    config = transformers.ClapTextConfig(**_TEXT, **_SPECIAL, max_position_embeddings=64)
    model = transformers.ClapTextModelWithProjection(config)
    return Wild(model, Inputs(input_ids=tokens(1, 12)), Inputs(input_ids=tokens(2, 17)))


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


class _Sentence(nn.Module):
    """Sentence vectors: the mean over tokens that are no padding, projected and of length one."""

    def __init__(self) -> None:
        super().__init__()
        transformers = import_module("transformers")
        self.encoder = transformers.BertModel(transformers.BertConfig(**_TEXT), add_pooling_layer=False)
        self.project = nn.Linear(32, 24)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return {"sentence_embedding": nn.functional.normalize(self.project(mean), dim=-1)}


def _sentence() -> Wild:
    def given(batch: int, length: int) -> Inputs:
        mask = (torch.arange(length) < torch.arange(length - batch + 1, length + 1)[:, None]).long()
        return Inputs(input_ids=tokens(batch, length), attention_mask=mask)

    return Wild(_Sentence(), given(1, 12), given(3, 17))


def _adapters(**settings: Any) -> Builder:
    def build() -> Wild:
        peft, transformers = import_module("peft"), import_module("transformers")
        kind = peft.IA3Config if "feedforward_modules" in settings else peft.LoraConfig
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GROUPED))
        model = peft.get_peft_model(base, kind(**settings))
        given = [Inputs(input_ids=tokens(n, size), use_cache=False) for n, size in ((1, 12), (2, 17))]
        return Wild(model, *given)

    return build


FURTHER: dict[str, Builder] = {
    **{f"transformers {name}": _transformer(*row) for name, row in _TRANSFORMERS.items()},
    "transformers EnCodec": _encodec,
    "transformers DETR": _detr,
    "transformers ViTMAE": _masked_images,
    "transformers CLAP text": _clap,
    "diffusers SD3": _sd3,
    "diffusers Flux": _flux,
    "diffusers ControlNet": _controlnet,
    "transformers BERT, pooled": _sentence,
    "peft DoRA": _adapters(r=4, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "peft IA3": _adapters(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
