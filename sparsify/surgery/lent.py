"""Forwards that cannot be rewritten: the effective weights are lent to a stand-in, and the original forward runs on it.

Attention, recurrent and transformer layers of torch.nn hand their weights to fused kernels, its norms their scale and
shift; other modules have forwards that fx cannot trace. A stand-in is a shallow copy of the module (same buffers, hooks
and children) whose parameters are replaced by effective weights. The module itself is not touched, so threads may share
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .masks import names_of_masked, original_class
from .opened import OPENED


def lent_weights(module: nn.Module) -> list[str]:
    """Return the paths of the weights that a torch.nn module hands to fused kernels itself; none for other modules.

    A subclass counts as what it is derived from: its own forward runs on the stand-in.
    """
    return [path for path in lent_parameters(module) if "weight" in path and module.get_parameter(path).dim() > 1]


def lent_parameters(module: nn.Module) -> list[str]:
    """Return the paths of all parameters that a torch.nn module hands to fused kernels; none for other modules."""
    if isinstance(module, nn.MultiheadAttention):
        paths = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
        paths += ["in_proj_bias", "bias_k", "bias_v", "out_proj.bias"]
    elif isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
        paths = module._flat_weights_names
    elif isinstance(module, (nn.RNNCell, nn.LSTMCell, nn.GRUCell)):
        paths = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    elif isinstance(module, nn.TransformerEncoderLayer):
        layers = [f"{layer}.{name}" for layer in _OF_ENCODER for name in ("weight", "bias")]
        paths = [*(f"self_attn.{path}" for path in lent_parameters(module.self_attn)), *layers]
    else:
        return []
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return [path for path in paths if path in parameters]


_OF_ENCODER = ("linear1", "linear2", "norm1", "norm2")


def lent_forward(original: type[nn.Module]) -> Callable[..., Any]:
    """Return a forward that runs the original one on a stand-in; `self.masked_reads` lists the weights' paths."""
    forward = original.forward
    opened = OPENED.get(forward)

    @wraps(forward)
    def lent(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if opened is not None and torch.compiler.is_compiling():
            return opened(self, effective_weights(self), *args, **kwargs)
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
    """Return, by path, `where(mask, parameter, 0)` of what the module's forward reads."""
    found = {}
    for path in module.masked_reads:  # type: ignore[union-attr]
        owner_path, _, name = path.rpartition(".")
        owner = module.get_submodule(owner_path)
        if name in names_of_masked(owner):
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
