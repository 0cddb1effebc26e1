"""Synaptic flow: each weight's share in the output of the network with all weights made positive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...calls import Inputs, inputs_of, tensors_in
from ...errors import SparsifyError
from ...surgery.mask_state.masks import MaskedWeight, all_masked_parameters, effective_weight, masked_parameters
from ..preserve_state import preserve_state


def synaptic_flow(model: nn.Module, names: Iterable[str], example_input: Any) -> dict[str, Tensor]:
    """Return |w| * dR/d|w| for each named effective weight, float64, shaped like it.

    R is the sum of the outputs for one input of ones, shaped like `example_input` (tensors whose first dimension is the
    batch). The network runs under its present masks, in float64, in eval mode, and is made positive and linear: every
    parameter and buffer is replaced by its absolute value, every shift (a bias, a norm's shift and running mean) by
    zero, and every norm by a scaling: |weight|, for batch norm |weight| / sqrt(running_var + eps). The model is not
    changed. Raises SparsifyError for inputs that are not floats, and if R overflows.
    """
    weights = masked_parameters(model)
    with preserve_state(model, [], training=False):
        leaves = {name: _positive(effective_weight(weight)).requires_grad_() for name, weight in weights.items()}
        with _PositiveLinear(model, weights, leaves):
            output = functional_call(model, _positive_state(model, leaves), *_ones(model, example_input))
        floating = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        flow = sum((tensor.sum() for tensor in floating), torch.zeros((), dtype=torch.float64))
        if not bool(flow.isfinite()):
            raise SparsifyError("criterion 'synflow': the flow through this model is too large for float64")
        wanted = [name for name in weights if name in set(names)]
        gradients = torch.autograd.grad(flow, [leaves[name] for name in wanted], allow_unused=True)
    scores = {}
    for name, gradient in zip(wanted, gradients, strict=True):
        leaf = leaves[name].detach()
        scores[name] = torch.zeros_like(leaf) if gradient is None else leaf * gradient
    return scores


def _positive(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64).abs()


def _positive_state(model: nn.Module, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the replacements of the model's floating-point parameters and buffers, by name."""
    state: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in leaves:
            state[name] = leaves[name]
        elif tensor.is_floating_point():
            positive = _positive(tensor)
            state[name] = torch.zeros_like(positive) if _is_shift(name.rpartition(".")[2]) else positive
    return state


def _is_shift(name: str) -> bool:
    # Recurrent and attention layers call theirs bias_ih_l0 and in_proj_bias.
    return name == "running_mean" or name.startswith("bias") or name.endswith("_bias")


def _ones(model: nn.Module, example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    device = next(model.parameters()).device
    inputs = inputs_of(example_input, "criterion 'synflow'", model)
    for tensor in pytree.tree_leaves(inputs):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() == 0:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise SparsifyError(
                f"criterion 'synflow' feeds ones to the model, so its inputs must be floats, not {kind}"
            )
    ones: Inputs = pytree.tree_map(lambda x: torch.ones((1, *x.shape[1:]), dtype=torch.float64, device=device), inputs)
    return ones.args, dict(ones.kwargs)


class _PositiveLinear(TorchFunctionMode):
    """Replaces masked weights by the positive ones, and norms by a scaling."""

    def __init__(self, model: nn.Module, weights: Mapping[str, MaskedWeight], leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        first = {id(weight.parameter): name for name, weight in weights.items()}
        self.leaves = {id(weight.mask): leaves[first[id(weight.parameter)]] for weight in all_masked_parameters(model)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.where and len(args) == 3 and id(args[0]) in self.leaves:
            args = (args[0], self.leaves[id(args[0])], args[2])
        return _SCALES.get(func, func)(*args, **(kwargs or {}))


def _scaled(input: Tensor, scale: Tensor | None, dimension: int) -> Tensor:
    """Return `input` times `scale`, whose dimensions are those of the input from `dimension` on."""
    if scale is None:
        return input
    last = input.dim() - scale.dim() - dimension
    return input * scale.reshape(*scale.shape, *[1] * last)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_var is not None:
        input = _scaled(input, (running_var + eps).rsqrt(), 1)
    return _scaled(input, weight, 1)


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _scaled(input, weight, 1)


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _scaled(input, weight, 1)


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    return _scaled(input, weight, input.dim() - len(normalized_shape))


# A norm's output has a fixed scale whatever its input: no gradient would flow back through it.
_SCALES: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
}
