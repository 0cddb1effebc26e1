"""Language models of transformers, of all architectures, and adapters of peft on them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calls import Inputs

from .configured import GROUPED, SPECIAL, TEXT, Row, configured
from .example import Builder, Wild, tokens

_T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
_BART = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=96, max_position_embeddings=64, decoder_start_token_id=1,
    forced_eos_token_id=None,
)  # fmt: skip
_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1)

_ROWS: dict[str, Row] = {
    "BERT": ("BertConfig", "BertForSequenceClassification", TEXT, "tokens"),
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
        {**TEXT, **SPECIAL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        "tokens",
    ),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED, "tokens"),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED, "tokens"),
    "Mistral": ("MistralConfig", "MistralForCausalLM", GROUPED, "tokens"),
    "Gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, **SPECIAL}, "tokens"),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, "tokens"),
    "T5": ("T5Config", "T5ForConditionalGeneration", {**_T5, **SPECIAL}, "tokens, decoder"),
    "Mamba": ("MambaConfig", "MambaForCausalLM", dict(hidden_size=32, num_hidden_layers=2, vocab_size=96), "tokens"),
    "RoBERTa": ("RobertaConfig", "RobertaForTokenClassification", {**TEXT, **SPECIAL}, "tokens"),
    "DeBERTa-v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64}
        | dict(position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm"),
        "text",
    ),
    "ELECTRA": ("ElectraConfig", "ElectraForPreTraining", {**TEXT, "embedding_size": 16}, "tokens"),
    "ALBERT": ("AlbertConfig", "AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, "tokens"),
    "Falcon": ("FalconConfig", "FalconForCausalLM", {**TEXT, **SPECIAL}, "tokens"),
    "Phi": ("PhiConfig", "PhiForCausalLM", {**TEXT, **SPECIAL}, "tokens"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, **SPECIAL, "sliding_window": 8}, "tokens"),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GROUPED, "tokens"),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**GROUPED, **_MOE}, "tokens"),
    "Bloom": ("BloomConfig", "BloomForCausalLM", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=96), "tokens"),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**TEXT, **SPECIAL}, "tokens"),
    "BART": ("BartConfig", "BartForConditionalGeneration", {**_BART, **SPECIAL}, "tokens, decoder"),
    "Pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", {**_BART, **SPECIAL}, "tokens, decoder"),
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
        {**TEXT, "num_key_value_heads": 2, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | dict(mamba_d_state=4, use_mamba_kernels=False),
        "tokens",
    ),
}


class _Sentence(nn.Module):
    """Sentence vectors: the mean over tokens that are no padding, projected and of length one."""

    def __init__(self) -> None:
        super().__init__()
        transformers = import_module("transformers")
        self.encoder = transformers.BertModel(transformers.BertConfig(**TEXT), add_pooling_layer=False)
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
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
        model = peft.get_peft_model(base, kind(**settings))
        given = [Inputs(input_ids=tokens(n, size), use_cache=False) for n, size in ((1, 12), (2, 17))]
        return Wild(model, *given)

    return build


LANGUAGE: dict[str, Builder] = {
    **{f"transformers {name}": configured(*row) for name, row in _ROWS.items()},
    "transformers BERT, pooled": _sentence,
    "peft DoRA": _adapters(r=4, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "peft IA3": _adapters(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
