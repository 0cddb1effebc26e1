"""Shape propagation: run a forward without its costly operations, since channel analyses do not read activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}  # -> position of the first factor
_ON_META = ("aten::convolution", "aten::_scaled_dot_product_flash_attention_for_cpu")
_NORM = "aten::native_batch_norm"
_NEED_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class ValuesNeededError(Exception):
    """The forward reads values of its activations, so they have to be computed."""


def run_shape_only(func: Any, args: Any, kwargs: Any, inputs: list[Any]) -> Any:
    """Return the results of an operation, or zeros of the right shape if it is costly.

    `inputs` are the Values of its tensors. Raises ValuesNeededError if the results, or their shapes, depend on the
    values of activations.
    """
    name = func._schema.name
    if all(value.constant is not None for value in inputs):
        return func(*args, **kwargs)
    if name in _PRODUCTS:
        first, second = args[_PRODUCTS[name] :][:2]
        shape = (*first.shape[:-1], second.shape[-1])
        added = args[0].shape if _PRODUCTS[name] else ()
        fits = all(size in (1, whole) for size, whole in zip(added[::-1], shape[::-1], strict=False))
        if first.shape[-1] != second.shape[-2] or first.shape[:-2] != second.shape[:-2] or not fits:
            raise ValuesNeededError  # computing it then raises torch's error
        return torch.zeros(shape, dtype=first.dtype, device=first.device)
    plain = all(leaf.is_contiguous() for leaf in args[:2] if isinstance(leaf, Tensor))
    if name == "aten::convolution" and plain:
        sizes = _convolved(args[0].shape, args[1].shape, *args[3:])
        if args[2] is not None and args[2].shape != (sizes[1],):
            raise ValuesNeededError
        return args[0].new_zeros(sizes)
    vectors = [leaf for leaf in args[1:5] if leaf is not None] if name == _NORM else []
    if name == _NORM and not args[5] and plain and all(leaf.shape == args[0].shape[1:2] for leaf in vectors):
        return tuple(args[0].new_zeros(shape) for shape in (args[0].shape, (0,), (0,)))
    if name in _ON_META:
        device = args[0].device
        args, kwargs = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (args, kwargs))
        without = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda leaf: torch.zeros_like(leaf, device=device), without)
    indexed = name == "aten::index" and all(value.constant is not None for value in inputs[1:])
    if not name.startswith("aten::") or (_NEED_VALUES.intersection(func.tags) and not indexed):
        raise ValuesNeededError
    return func(*args, **kwargs)


def _convolved(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    extra: Sequence[int],
    groups: int,
) -> list[int]:
    """Return the shape of a convolution's result; raise ValuesNeededError if the shapes do not fit, to compute it."""
    space = len(kernel) - 2
    inputs, outputs = (kernel[0], kernel[1] * groups) if transposed else (kernel[1] * groups, kernel[0])
    if len(shape) != len(kernel) or shape[1] != inputs or kernel[0] % groups:
        raise ValuesNeededError
    sizes = []
    for i in range(space):
        step, pad, apart, more = (each[i % len(each)] for each in (stride, padding, dilation, extra))
        reach = apart * (kernel[i + 2] - 1)
        if transposed:
            sizes.append((shape[i + 2] - 1) * step - 2 * pad + reach + more + 1)
        else:
            sizes.append((shape[i + 2] + 2 * pad - reach - 1) // step + 1)
    if min(sizes, default=1) < 1:
        raise ValuesNeededError
    return [shape[0], outputs, *sizes]
