"""Forwards of torch.nn in open operations, for torch.compile, which cannot follow a stand-in.

Each takes the module and, by path, the effective weights and further parameters that its forward reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Effective = Mapping[str, Tensor]


def _attention(
    self: nn.MultiheadAttention,
    effective: Effective,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    batched = query.dim() == 3
    if self.batch_first and batched:
        query, key, value = (tensor.transpose(1, 0) for tensor in (query, key, value))
    output, attention = F.multi_head_attention_forward(
        query,
        key,
        value,
        self.embed_dim,
        self.num_heads,
        effective.get("in_proj_weight", self.in_proj_weight),
        effective.get("in_proj_bias", self.in_proj_bias),
        effective.get("bias_k", self.bias_k),
        effective.get("bias_v", self.bias_v),
        self.add_zero_attn,
        self.dropout,
        effective.get("out_proj.weight", self.out_proj.weight),
        effective.get("out_proj.bias", self.out_proj.bias),
        training=self.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=not self._qkv_same_embed_dim,
        q_proj_weight=effective.get("q_proj_weight", self.q_proj_weight),
        k_proj_weight=effective.get("k_proj_weight", self.k_proj_weight),
        v_proj_weight=effective.get("v_proj_weight", self.v_proj_weight),
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return (output.transpose(1, 0) if self.batch_first and batched else output), attention


def _encoder_layer(
    self: nn.TransformerEncoderLayer,
    _: Effective,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Its children are masked themselves."""
    x = src
    if self.norm_first:
        x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
        return x + self._ff_block(self.norm2(x))
    x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
    output: Tensor = self.norm2(x + self._ff_block(x))
    return output


def _batch_norm(self: _BatchNorm, effective: Effective, input: Tensor) -> Tensor:
    self._check_input_dim(input)  # type: ignore[no-untyped-call]
    momentum = 0.0 if self.momentum is None else self.momentum
    if self.training and self.track_running_stats and self.num_batches_tracked is not None:
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
    tracked = not self.training or self.track_running_stats
    return F.batch_norm(
        input,
        self.running_mean if tracked else None,
        self.running_var if tracked else None,
        effective.get("weight", self.weight),
        effective.get("bias", self.bias),
        self.training or (self.running_mean is None and self.running_var is None),
        momentum,
        self.eps,
    )


def _layer_norm(self: nn.LayerNorm, effective: Effective, input: Tensor) -> Tensor:
    weight, bias = effective.get("weight", self.weight), effective.get("bias", self.bias)
    return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


def _group_norm(self: nn.GroupNorm, effective: Effective, input: Tensor) -> Tensor:
    weight, bias = effective.get("weight", self.weight), effective.get("bias", self.bias)
    return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def _rms_norm(self: nn.RMSNorm, effective: Effective, x: Tensor) -> Tensor:
    return F.rms_norm(x, self.normalized_shape, effective.get("weight", self.weight), self.eps)


# torch.nn's forward -> the same in open operations.
OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.MultiheadAttention.forward: _attention,
    nn.TransformerEncoderLayer.forward: _encoder_layer,
    _BatchNorm.forward: _batch_norm,
    nn.LayerNorm.forward: _layer_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.RMSNorm.forward: _rms_norm,
}
