"""Forwards that cannot be rewritten: the effective weights are lent to a stand-in, and the original forward runs on it.

Attention, recurrent and transformer layers of torch.nn hand their weights to fused kernels; other modules have
forwards that fx cannot trace. A stand-in is a shallow copy of the module (same buffers, hooks and children) whose
parameters are replaced by effective weights. The module itself is not touched, so threads may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .masks import original_class


def lent_weights(module: nn.Module) -> list[str]:
    """Return the paths of the weights that a torch.nn module hands to fused kernels itself; none for other modules.

    A subclass counts as what it is derived from: its own forward runs on the stand-in.
    """
    if isinstance(module, nn.MultiheadAttention):
        paths = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    elif isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
        paths = [name for name in module._flat_weights_names if name.startswith("weight_")]
    elif isinstance(module, (nn.RNNCell, nn.LSTMCell, nn.GRUCell)):
        paths = ["weight_ih", "weight_hh"]
    elif isinstance(module, nn.TransformerEncoderLayer):
        attention = [f"self_attn.{name}" for name in lent_weights(module._modules["self_attn"])]  # type: ignore[arg-type]
        paths = [*attention, "linear1.weight", "linear2.weight"]
    else:
        return []
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return [path for path in paths if path in parameters]


def lent_forward(original: type[nn.Module]) -> Callable[..., Any]:
    """Return a forward that runs the original one on a stand-in; `self.masked_reads` lists the weights' paths."""
    forward = original.forward
    compiled = COMPILED.get(forward)

    @wraps(forward)
    def lent(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if compiled is not None and torch.compiler.is_compiling():
            return compiled(self, *args, **kwargs)
        return run_on_stand_in(forward, self, args, kwargs)

    return lent


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_on_stand_in(forward: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Return what the dense `forward` gives on a stand-in of `module`; what it assigns to self is kept."""
    double = stand_in(module, effective_weights(module))
    result = forward(double, *args, **kwargs)
    for name, value in double.__dict__.items():
        if name not in ("_parameters", "_modules", "_flat_weights") and module.__dict__.get(name) is not value:
            module.__dict__[name] = value
    return result


def effective_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return, by path, `where(mask, weight, 0)` of the weights that the module's forward reads."""
    found = {}
    for path in module.masked_reads:  # type: ignore[union-attr]
        owner_path, _, name = path.rpartition(".")
        owner = module.get_submodule(owner_path)
        if name in owner.__dict__.get("masked_names", ()):
            found[path] = ops.mask_weight(getattr(owner, name), getattr(owner, f"{name}_mask"))
    return found


def stand_in(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a shallow copy of `module`, of its original class, with the parameters at the given paths replaced."""
    cls = original_class(module)
    double: nn.Module = cls.__new__(cls)
    double.__dict__.update(module.__dict__)
    own = {path: weight for path, weight in weights.items() if "." not in path}
    double.__dict__["_parameters"] = {**module._parameters, **own}
    below: dict[str, dict[str, Tensor]] = {}
    for path, weight in weights.items():
        child, _, rest = path.partition(".")
        if rest:
            below.setdefault(child, {})[rest] = weight
    children = {name: stand_in(module._modules[name], inner) for name, inner in below.items()}  # type: ignore[arg-type]
    double.__dict__["_modules"] = {**module._modules, **children}
    if isinstance(module, nn.RNNBase):
        double.__dict__["_flat_weights"] = [double._parameters.get(name) for name in module._flat_weights_names]
    return double


def _attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """nn.MultiheadAttention in open operations, for torch.compile, which cannot follow a stand-in."""
    weights = effective_weights(self)
    batched = query.dim() == 3
    if self.batch_first and batched:
        query, key, value = (tensor.transpose(1, 0) for tensor in (query, key, value))
    output, attention = F.multi_head_attention_forward(
        query,
        key,
        value,
        self.embed_dim,
        self.num_heads,
        weights.get("in_proj_weight", self.in_proj_weight),
        self.in_proj_bias,
        self.bias_k,
        self.bias_v,
        self.add_zero_attn,
        self.dropout,
        weights.get("out_proj.weight", self.out_proj.weight),
        self.out_proj.bias,
        training=self.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=not self._qkv_same_embed_dim,
        q_proj_weight=weights.get("q_proj_weight", self.q_proj_weight),
        k_proj_weight=weights.get("k_proj_weight", self.k_proj_weight),
        v_proj_weight=weights.get("v_proj_weight", self.v_proj_weight),
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return (output.transpose(1, 0) if self.batch_first and batched else output), attention


def _encoder_layer(
    self: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """nn.TransformerEncoderLayer in open operations; its children are masked themselves."""
    x = src
    if self.norm_first:
        x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
        return x + self._ff_block(self.norm2(x))
    x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
    output: Tensor = self.norm2(x + self._ff_block(x))
    return output


# What torch.compile sees instead of the original forward.
COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.MultiheadAttention.forward: _attention,
    nn.TransformerEncoderLayer.forward: _encoder_layer,
}
