"""The masked operations that a converted model calls in place of conv and linear.

Each takes the raw weight and its mask (or None) and computes with `where(mask, weight, 0)`: a removed entry is +0.0
whatever value is stored (even NaN), and its gradient is exactly zero. Under `torch.fx` each is one node, never a baked
constant.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.weak import WeakIdKeyDictionary

from .processes.shards import is_sharded, whole

_INTEGER_LIKE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 19  # elements: a chunk of the mask, widened to the weight's type, stays in the second-level cache
_REUSED_FROM = 1 << 20  # bytes: above this the C library may return freed memory to the system


class _Free(list[np.ndarray[Any, Any]]):
    """Free memory of one size, for as long as a mask refers to it."""


# Free memory for large effective weights on the CPU, by mask, shared by all masks of one size. The C library returns a
# freed tensor of this size to the system, and the page faults of the next allocation cost more than the masking itself.
_SCRATCH: WeakIdKeyDictionary = WeakIdKeyDictionary()
_FREE: weakref.WeakValueDictionary[int, _Free] = weakref.WeakValueDictionary()


def mask_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """Return `where(mask, weight, 0)` for tensors of equal shape; the gradient of a removed entry is exactly zero."""
    if isinstance(weight, Proxy) or isinstance(mask, Proxy):
        return _node(mask_weight, weight, mask)
    mask = _whole(mask, weight)
    return _requiring_grad_like(weight, torch.where(mask, weight, 0))


def mask_in_its_layout(weight: Tensor, mask: Tensor) -> Tensor:
    """Return `mask_weight(weight, mask)` with the strides of `weight`; its gradient keeps the incoming strides.

    Other strides would select other kernels of torch, which give other bits.
    """
    if isinstance(weight, Proxy) or isinstance(mask, Proxy) or weight.is_contiguous():
        return mask_weight(weight, mask)
    mask = _whole(mask, weight)
    if is_transformed():
        return torch.where(_laid_out(mask, weight), weight, 0)
    return _requiring_grad_like(weight, _MaskOperandInItsLayout.apply(weight, mask))


def _laid_out(mask: Tensor, values: Tensor) -> Tensor:
    """Return the mask laid out in memory with the dimension order of `values`."""
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    back = sorted(range(len(order)), key=order.__getitem__)
    return mask.permute(order).contiguous().permute(back)


class _MaskOperandInItsLayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.where(_laid_out(mask, weight), weight, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(_laid_out(mask, gradient), gradient, 0), None


def masked_linear(input: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear(input, where(mask, weight, 0), bias)`; `mask` is bool, shaped like `weight` [out, in]."""
    if mask is None:
        return F.linear(input, weight, bias)
    if _traced(input, weight, mask):
        return _node(masked_linear, input, weight, mask, bias)
    return F.linear(input, _masked_operand(weight, mask), bias)


def _masked_convolution(convolution: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def masked(input: Tensor, weight: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if mask is None:
            return convolution(input, weight, *args, **kwargs)
        if _traced(input, weight, mask):
            return _node(masked, input, weight, mask, *args, **kwargs)
        return convolution(input, _masked_operand(weight, mask), *args, **kwargs)

    masked.__name__ = masked.__qualname__ = name
    masked.__doc__ = (
        f"Return `F.{convolution.__name__}(input, where(mask, weight, 0), ...)`; what follows the mask is what "
        f"follows the weight there. `mask` is bool, shaped like `weight`."
    )
    return masked


masked_conv1d = _masked_convolution(F.conv1d, "masked_conv1d")
masked_conv2d = _masked_convolution(F.conv2d, "masked_conv2d")
masked_conv3d = _masked_convolution(F.conv3d, "masked_conv3d")
masked_conv_transpose1d = _masked_convolution(F.conv_transpose1d, "masked_conv_transpose1d")
masked_conv_transpose2d = _masked_convolution(F.conv_transpose2d, "masked_conv_transpose2d")
masked_conv_transpose3d = _masked_convolution(F.conv_transpose3d, "masked_conv_transpose3d")

# The dense operation -> its masked form.
MASKED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: masked_linear,
    F.conv1d: masked_conv1d,
    F.conv2d: masked_conv2d,
    F.conv3d: masked_conv3d,
    F.conv_transpose1d: masked_conv_transpose1d,
    F.conv_transpose2d: masked_conv_transpose2d,
    F.conv_transpose3d: masked_conv_transpose3d,
}


def _traced(*tensors: Any) -> bool:
    return any(isinstance(tensor, Proxy) for tensor in tensors)


def _node(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """Record a call of `function` in the graph that is being traced."""
    tracer = next(argument.tracer for argument in args if isinstance(argument, Proxy))
    node: Any = tracer.create_proxy("call_function", function, args, kwargs)
    return node  # type: ignore[no-any-return]


def _masked_operand(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the effective weight for a conv or linear operation that is its only reader."""
    mask = _whole(mask, weight)
    plain = (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.dtype.itemsize in _INTEGER_LIKE
        and not is_transformed()
        and same_dense_layout(weight, mask)
    )
    if plain:
        return _requiring_grad_like(weight, _MaskOperand.apply(weight, mask))
    return _requiring_grad_like(weight, torch.where(mask, weight, 0))


def _requiring_grad_like(weight: Tensor, masked: Tensor) -> Tensor:
    """Return `masked` with the weight's `requires_grad`, even under no_grad.

    torch's linear selects its kernel by `requires_grad`, under no_grad too, and by whether the weight is a view, and
    another kernel gives other bits.
    """
    if type(masked) is Tensor and weight.requires_grad and not masked.requires_grad and not is_transformed():
        return masked.detach().requires_grad_()
    return masked


def _whole(mask: Tensor, weight: Tensor) -> Tensor:
    """Return the mask, gathered from all processes if it is sharded and `fully_shard` has gathered the weight."""
    if torch.compiler.is_compiling() or not is_sharded(mask) or is_sharded(weight):
        return mask
    return whole(mask)


def is_transformed() -> bool:
    """Return whether torch.compile, torch.jit.trace or a functorch transform is active."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch._C._are_functorch_transforms_active()


class _MaskOperand(torch.autograd.Function):
    """`where(mask, weight, 0)` on the CPU at memory bandwidth, which torch.where and its gradient do not reach.

    Only for the direct operand of a conv or linear: their weight gradient is a new tensor without other references, so
    it may be masked in place.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return _bitwise_masked(weight, mask, out=_uninitialised_like(weight, mask))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled() or type(gradient) is not Tensor or not same_dense_layout(gradient, mask):
            return torch.where(mask, gradient, 0), None
        return _bitwise_masked(gradient, mask, out=gradient), None


def same_dense_layout(values: Tensor, mask: Tensor) -> bool:
    """Return whether two tensors have the same strides, without gaps: those of a contiguous or channels-last tensor."""
    if values.stride() != mask.stride():
        return False
    if values.is_contiguous():
        return True
    return values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)


def _bitwise_masked(values: Tensor, mask: Tensor, *, out: Tensor) -> Tensor:
    """Write `where(mask, values, 0)` to `out` and return it; all three have the same dense layout.

    The values' bits, read as integers, are multiplied by 0 or 1, which is exact for NaN and infinity as well.
    """
    integer = _INTEGER_LIKE[values.dtype.itemsize]
    count = values.numel()
    source = values.detach().as_strided((count,), (1,)).view(integer)
    target = out.detach().as_strided((count,), (1,)).view(integer)
    keep = mask.as_strided((count,), (1,))  # may hold other bytes than 0 and 1; copying a bool gives 0 or 1
    widened = torch.empty(min(count, _CHUNK), dtype=integer, device=values.device)
    for start in range(0, count, _CHUNK):
        end = min(count, start + _CHUNK)
        bits = widened[: end - start]
        bits.copy_(keep[start:end])
        torch.mul(source[start:end], bits, out=target[start:end])
    return out


def _uninitialised_like(weight: Tensor, mask: Tensor) -> Tensor:
    size = weight.numel() * weight.dtype.itemsize
    if size < _REUSED_FROM:
        return torch.empty_like(weight)
    pool = _SCRATCH[mask] = _FREE.setdefault(size, _Free())
    try:
        memory = pool.pop()
    except IndexError:
        memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    part = memory[start : start + size]
    # The tensor, and a graph that saved it, keep `part` alive; when the last reference goes, the memory is free again.
    weakref.finalize(part, pool.append, memory).atexit = False
    return torch.from_numpy(part).view(weight.dtype).as_strided(weight.shape, weight.stride())
