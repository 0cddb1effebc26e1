"""Substituted calls: a module's own forward runs, unchanged, on a copy that holds the effective weights.

The copy is shallow: it has the module's class, attributes, buffers, hooks and children, and the parameters that the
forward reads are replaced by `where(mask, parameter, 0)`, as torch.func.functional_call would do. The module itself is
not touched, so threads may share it; everything else that the forward reads (globals, class attributes, modes,
arguments) is as before the conversion. If the forward computes its weight from the parameter, the computed weight is
masked when the operation is called (`operand_mode.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ... import ops
from ...errors import SparsifyError
from ..mask_state.live_masks import mask_in_forward
from ..mask_state.masks import names_of_masked, original_class
from ..module_walk import owner_of
from ..shallow_copies import bind_to, rebound, with_attributes
from .operand_mode import Operands, eagerly
from .written_weights import keep_written, stamps

_REPLACED = frozenset({"_parameters", "_modules", "_flat_weights"})
_MISSING = object()


def fused_weights(module: nn.Module) -> list[str]:
    """Return the paths of the weights that a torch.nn module (or subclass) passes to fused kernels, [] for others."""
    return [path for path in fused_parameters(module) if "weight" in path and module.get_parameter(path).dim() > 1]


def fused_parameters(module: nn.Module) -> list[str]:
    """Return the paths of all parameters that a torch.nn module passes to fused kernels, [] for other modules."""
    if isinstance(module, nn.MultiheadAttention):
        paths = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
        paths += ["in_proj_bias", "bias_k", "bias_v", "out_proj.bias"]
    elif isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
        paths = module._flat_weights_names
    elif isinstance(module, (nn.RNNCell, nn.LSTMCell, nn.GRUCell)):
        paths = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    elif isinstance(module, nn.Bilinear):
        paths = ["weight", "bias"]
    elif isinstance(module, nn.TransformerEncoderLayer):
        layers = [f"{layer}.{name}" for layer in _OF_ENCODER for name in ("weight", "bias")]
        paths = [*(f"self_attn.{path}" for path in fused_parameters(module.self_attn)), *layers]
    else:
        return []
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return [path for path in paths if path in parameters]


# Older Dynamo (seen in torch 2.10) cannot trace the copy of a module's attributes: the graph breaks at such modules.
DYNAMO_FOLLOWS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
_OF_ENCODER = ("linear1", "linear2", "norm1", "norm2")


def substituted_call(forward: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Return `forward` called on a copy of `module` with effective weights; attributes that it sets go to `module`."""
    if torch.compiler.is_compiling() and ((module.computed_weights and module.computed_eagerly) or not DYNAMO_FOLLOWS):
        return eagerly(substituted_call, forward, module, args, kwargs)
    weights = effective_weights(module)
    functional = module.__dict__.get("calls_functionally", False)
    copied = substituted_copy(module, weights, original_class(module), functional)
    before = stamps(weights)
    bound = {name: copied.__dict__.get(name) for name in module.__dict__.get("bound_attributes", ())}
    try:
        masked = _masked_operands(module, weights.values())
        with masked or nullcontext():
            result = forward(copied, *args, **kwargs)
        if _loses_masks(masked, result):
            name = original_class(module).__name__
            raise SparsifyError(f"{name}: the masks on the weights that it computes cannot be traced")
        return result
    finally:
        keep_written(module, weights, before)
        _keep_assigned(module, copied, weights, bound)


def _masked_operands(module: Any, weights: Iterable[Tensor]) -> Operands | None:
    """Return the mode that masks what the module's forward computes its weights as, not `weights`; None for nothing."""
    if not module.computed_weights:
        return None
    masks = [(getattr(module, name), mask_in_forward(module, name)) for name in module.computed_weights]
    masked = [(parameter, _masked_by(mask)) for parameter, mask in masks]
    return Operands(masked, [*module.buffers(), *weights])


def _loses_masks(masked: Operands | None, result: Any) -> bool:
    """Return whether a trace, in which a mode does not see every operation, missed a mask."""
    return masked is not None and isinstance(result, fx.Proxy) and len(masked.replaced) < len(masked.replacements)


def _masked_by(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda operand: ops.mask_in_its_layout(operand, mask)


def _keep_assigned(
    module: nn.Module, copied: nn.Module, weights: Mapping[str, Tensor], bound: Mapping[str, Any]
) -> None:
    """Repeat on `module` the attribute changes that a forward made on its copy; `bound` are the copy's own methods."""
    own, now = module.__dict__, copied.__dict__
    for name, value in now.items():
        if name not in _REPLACED and own.get(name, _MISSING) is not value and bound.get(name, _MISSING) is not value:
            own[name] = rebound(value, copied, module)
    _drop(own, now)
    for name, parameter in copied._parameters.items():
        if all(parameter is not held.get(name, _MISSING) for held in (weights, module._parameters)):
            module._parameters[name] = parameter
    _drop(module._parameters, copied._parameters)
    if copied._modules is not module._modules:
        for name, child in copied._modules.items():
            held = child.original_module if isinstance(child, _ReadCopy) else child
            if held is not module._modules.get(name, _MISSING):
                module._modules[name] = held
        _drop(module._modules, copied._modules)


def _drop(held: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Delete the entries of `held` that are no longer in `now`, in place."""
    if len(now) < len(held):
        for name in [name for name in held if name not in now]:
            del held[name]


def effective_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return {path: where(mask, parameter, 0)} of the masked parameters that the module's forward reads."""
    found = {}
    for path in module.__dict__.get("masked_reads", names_of_masked(module)):
        owner, name = owner_of(module, path)
        if name in names_of_masked(owner) and name not in owner.__dict__.get("computed_weights", ()):
            parameter = getattr(owner, name)
            weight = found[path] = ops.mask_weight(parameter, mask_in_forward(owner, name))
            if type(weight) is Tensor and not torch.compiler.is_compiling():
                weight.__dict__.update(parameter.__dict__)  # attributes that other code set on it
    return found


def substituted_copy(
    module: nn.Module, weights: Mapping[str, Tensor], cls: type[nn.Module], functional: bool = False
) -> nn.Module:
    """Return a shallow copy of `module`, of class `cls`, with the parameters at the paths in `weights` replaced.

    Submodules that own some of them are copied too, for reading; calling such a copy calls the original module.
    `functional`: it calls the copy itself, so that gradients of its weights can be taken (torch.func.functional_call).
    """
    copied = with_attributes(cls, module)
    bind_to(copied, module, module.__dict__.get("bound_attributes", ()))
    own: dict[str, Tensor] = {}
    below: dict[str, dict[str, Tensor]] = {}
    for path, weight in weights.items():
        child, _, rest = path.partition(".")
        if rest:
            below.setdefault(child, {})[rest] = weight
        else:
            own[path] = weight
    copied.__dict__["_parameters"] = {**module._parameters, **own}
    if below:
        children = {}
        for name, inner in below.items():
            child_module: Any = module._modules[name]
            children[name] = substituted_copy(child_module, inner, _read_copy_class(type(child_module)), functional)
            children[name].__dict__["original_module"] = child_module
            children[name].__dict__["fused"] = {} if functional else dict(children[name]._parameters)
        copied.__dict__["_modules"] = {**module._modules, **children}
    if isinstance(module, nn.RNNBase):
        copied.__dict__["_flat_weights"] = [getattr(copied, name, None) for name in module._flat_weights_names]
    return copied


class _ReadCopy:
    """Mixin for the class of a copy made for reading; calling the copy calls the original module.

    If the copy's weights were replaced since (by torch.func.functional_call), the call uses those weights, unmasked.
    """

    original_module: nn.Module
    fused: Mapping[str, Tensor | None]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Skip the original class's hook, which would register or check this class as a new one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, this = self.original_module, cast(nn.Module, self)
        if not _given_others(this):
            return module(*args, **kwargs)
        copied = substituted_copy(module, this._parameters, original_class(module))  # type: ignore[arg-type]
        copied.__dict__["_modules"] = this._modules
        try:
            return copied(*args, **kwargs)
        finally:
            _keep_assigned(module, copied, this._parameters, {})  # type: ignore[arg-type]


def _given_others(copied: nn.Module) -> bool:
    """Return whether a copy, or a copied submodule, holds other parameters than it was created with."""
    fused = copied.__dict__["fused"]
    if any(parameter is not fused.get(name) for name, parameter in copied._parameters.items()):
        return True
    return any(isinstance(child, _ReadCopy) and _given_others(child) for child in copied._modules.values())


_READ_COPY_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _read_copy_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _READ_COPY_CLASSES:
        metaclass: Any = type(cls)
        namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _READ_COPY_CLASSES[cls] = metaclass(cls.__name__, (_ReadCopy, cls), namespace)
    return _READ_COPY_CLASSES[cls]


# The mark of torch.compiler.assume_constant_result, set without importing torch._dynamo.
_read_copy_class._dynamo_marked_constant = True  # type: ignore[attr-defined]
