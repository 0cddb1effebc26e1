"""Masked classes, the classes of converted modules.

A converted module stays the same object; only its class changes, to a subclass of its own class made here. The kinds:
`direct` for torch.nn's conv and linear (a masked operation replaces the dense one), `substituted` for every other
forward (it runs unchanged on a copy of the module that holds the effective weights), `owner` for modules that only own
a weight that others read, `parametrized` for a ParametrizationList (it masks the weight that it returns).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ..mask_state.averages import keep_masks_in_averages
from ..mask_state.live_masks import bool_mask, make_masks_bool, mask_in_forward
from ..mask_state.masks import all_masked_parameters, names_of_masked
from ..mask_state.parametrized import mask_in_hooks, masked_parametrization, read_computed, unmask_in_hooks
from .computed_weights import computed_weight
from .given_weights import Given, given_class
from .passed_over import PassedOver, warn_of_masks_left_out, warn_of_save_pretrained
from .substituted_call import substituted_call

_OF_MODULES = (
    *("masked_names", "masked_also", "masked_layouts", "masked_reads"),
    *("computed_weights", "computed_eagerly", "bound_attributes", "calls_functionally"),
)
# Attributes of masked modules besides the masks: a module that already has one of these cannot be masked.
ATTRIBUTES = (*_OF_MODULES, "original_class", "dense_forward", "masked_kind", "compute_effective_weight")


class Masked(PassedOver):
    """Mixin for the classes of converted modules."""

    masked_names: tuple[str, ...] = ()
    masked_also: tuple[str, ...] = ()
    computed_weights: tuple[str, ...] = ()
    computed_eagerly = True  # of a pickle made before modules had this attribute
    original_class: type[nn.Module]
    dense_forward: Callable[..., Any]  # the original class's forward when this class was made
    masked_kind: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Skip the original class's hook, which would register or check this class as a new one."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        keep_masks_in_averages()  # an average starts by copying the model
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        original = self.original_class
        if issubclass(original, Given):  # a class without an importable name
            return (_new_masked_given, (original.__mro__[2], self.masked_kind), *reduced[2:])
        return (_new_masked, (original, self.masked_kind), *reduced[2:])

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        warn_of_save_pretrained(args[0])
        for name in names_of_masked(self):  # type: ignore[arg-type]
            if f"{name}_mask" in self._buffers:  # type: ignore[attr-defined]  # else an average removed it
                bool_mask(self, name)  # type: ignore[arg-type]
        super()._save_to_state_dict(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        make_masks_bool(state_dict, [f"{prefix}{name}_mask" for name in names_of_masked(self)])  # type: ignore[arg-type]
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)  # type: ignore[misc]
        # A dense model's state dict has no masks: it loads with strict=True, and the masks stay unchanged.
        for name in (*self.masked_names, *self.masked_also):
            if f"{prefix}{name}_mask" in missing:
                missing.remove(f"{prefix}{name}_mask")
                if getattr(self, f"{name}_mask").is_meta:  # loaded with assign=True into a model on the meta device
                    ones = torch.ones_like(getattr(self, name), dtype=torch.bool, requires_grad=False)
                    setattr(self, f"{name}_mask", ones)


def _new_masked(original: type[nn.Module], kind: str) -> nn.Module:
    cls = masked_class(original, kind)  # type: ignore[arg-type]
    return cls.__new__(cls)


def _new_masked_given(plain: type[nn.Module], kind: str) -> nn.Module:
    return _new_masked(given_class(plain), kind)  # type: ignore[arg-type]


@cache
def masked_class(original: type[nn.Module], kind: str) -> type[nn.Module]:
    """Return the subclass of `original` whose forward is masked (cached).

    It has the name of `original`, so that the `repr` of a model does not change.
    """
    namespace: dict[str, Any] = {
        "original_class": original,
        "dense_forward": original.forward,
        "masked_kind": kind,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        # fx's default tracer treats modules of torch.nn as leaves. Masked conv and linear operations have to show as
        # nodes; attention and recurrent modules stay leaves.
        "__module__": __name__ if kind == "direct" else original.__module__,
    }
    if kind == "direct":
        namespace["forward"] = DIRECT[original.forward]
    elif kind == "substituted":
        namespace |= {"forward": _substituted_forward(original), "compute_effective_weight": computed_weight}
    elif kind == "parametrized":
        namespace["forward"] = masked_parametrization(original)
    metaclass: Any = type(original)
    made: type[nn.Module] = metaclass(original.__name__, (Masked, original), namespace)
    return made


def _substituted_forward(original: type[nn.Module]) -> Callable[..., Any]:
    @wraps(original.forward)
    def substituted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _dense_call(self, *args, **kwargs)

    return substituted


def _dense_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the current forward of the module's class: as a substituted call, or directly if it has no masks."""
    if isinstance(self, Masked):
        return substituted_call(self.original_class.forward, self, args, kwargs)  # type: ignore[arg-type]
    return type(self).forward(self, *args, **kwargs)


def _is_direct_no_more(self: Any) -> bool:
    """Return whether the module lost its masks (a bound forward was copied) or its class's forward was replaced."""
    return not isinstance(self, Masked) or self.original_class.forward is not type(self).dense_forward


def _mask_and_bias(self: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight's mask (or None) and the effective bias of a `direct` module.

    A new instance of the masked class has no masks: peft, for example, creates adapters of a layer's own class.
    """
    also = self.masked_also
    if not also:
        return mask_in_forward(self, "weight") if self.masked_names else None, self.bias
    mask = mask_in_forward(self, "weight") if "weight" in also or "weight" in self.masked_names else None
    return mask, ops.mask_weight(self.bias, mask_in_forward(self, "bias")) if "bias" in also else self.bias


def _masked_linear(self: Any, input: Tensor) -> Tensor:
    if _is_direct_no_more(self):
        return _dense_call(self, input)  # type: ignore[no-any-return]
    mask, bias = _mask_and_bias(self)
    return ops.masked_linear(input, self.weight, mask, bias)


def _masked_conv(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor) -> Tensor:
        """Return torch.nn's convolution of this class, computed by the masked operation."""
        if _is_direct_no_more(self):
            return _dense_call(self, input)  # type: ignore[no-any-return]
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        mask, bias = _mask_and_bias(self)
        return operation(input, self.weight, mask, bias, self.stride, padding, self.dilation, self.groups)

    return forward


def _masked_conv_transpose(operation: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return torch.nn's transposed convolution of this class, computed by the masked operation."""
        if _is_direct_no_more(self):
            return _dense_call(self, input, *(() if output_size is None else (output_size,)))  # type: ignore[no-any-return]
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation
        )
        mask, bias = _mask_and_bias(self)
        return operation(
            input,
            self.weight,
            mask,
            bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )

    return forward


def is_direct(cls: type[nn.Module]) -> bool:
    """Return whether a class inherits torch.nn's conv or linear forward and the methods that it calls."""
    if getattr(cls, "forward", None) not in DIRECT:  # scripted classes have none
        return False
    return all(getattr(cls, step, own) is own for step, own in _STEPS.get(cls.forward, {}).items())


# torch.nn's forward -> the masked one. The key also matches a subclass that does not override its forward.
DIRECT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    nn.Linear.forward: _masked_linear,
    nn.Conv1d.forward: _masked_conv(ops.masked_conv1d),
    nn.Conv2d.forward: _masked_conv(ops.masked_conv2d),
    nn.Conv3d.forward: _masked_conv(ops.masked_conv3d),
    nn.ConvTranspose1d.forward: _masked_conv_transpose(ops.masked_conv_transpose1d, 1),
    nn.ConvTranspose2d.forward: _masked_conv_transpose(ops.masked_conv_transpose2d, 2),
    nn.ConvTranspose3d.forward: _masked_conv_transpose(ops.masked_conv_transpose3d, 3),
}


_STEPS = {cls.forward: {"_conv_forward": cls._conv_forward} for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def attach_mask(module: nn.Module, name: str, mask: Tensor, *, extra: bool = False) -> None:
    """Register `mask` as the live mask of the module's parameter `name`; `extra`: list it in `masked_also`."""
    module.register_buffer(f"{name}_mask", mask)
    key = "masked_also" if extra else "masked_names"
    module.__dict__[key] = (*module.__dict__.get(key, ()), name)
    mask_in_hooks(module)


def guard_loading(model: nn.Module) -> None:
    """Make `model.load_state_dict` check all masks before it changes anything; it refuses averaged masks."""
    present = [getattr(hook, "hook", None) for hook in model._load_state_dict_pre_hooks.values()]
    if _check_loaded_masks not in present:
        model.register_load_state_dict_pre_hook(_check_loaded_masks)  # type: ignore[no-untyped-call]


def _check_loaded_masks(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    masks = [f"{prefix}{weight.name}_mask" for weight in all_masked_parameters(model)]
    make_masks_bool(state_dict, masks)
    warn_of_masks_left_out(state_dict, [f"{prefix}{name}" for name, _ in model.named_buffers(remove_duplicate=False)])


def detach_masks(module: nn.Module) -> None:
    """Undo the conversion of one module, in place: remove its masks, hooks and masked class."""
    for number, hook in list(module._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", None) is _check_loaded_masks:
            del module._load_state_dict_pre_hooks[number]
    unmask_in_hooks(module)
    for name in names_of_masked(module):
        del module._buffers[f"{name}_mask"]
    for name in _OF_MODULES:
        module.__dict__.pop(name, None)
    if isinstance(module, Masked):
        object.__setattr__(module, "__class__", module.original_class)
        read_computed(module)
