"""Shape propagation: running a forward without its costly operations, since channel analyses read no activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tracing.one_forward import map_leaves

_PRODUCTS = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
}  # costly -> position of the first factor
_OTHERS = ("aten::convolution", "aten::_scaled_dot_product_flash_attention_for_cpu")
_NEED_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class ValuesNeededError(Exception):
    """The forward reads values of its activations, so that they have to be computed."""


def run_shape_only(func: Any, args: Any, kwargs: Any, inputs: list[Any]) -> Any:
    """Return the results of an operation, of a costly one zeros of the right shape; `inputs` are its tensors' Values.

    Raises ValuesNeededError if the results, or their shapes, depend on the values of activations.
    """
    name = func._schema.name
    if all(value.constant is not None for value in inputs):
        return func(*args, **kwargs)
    if name in _PRODUCTS:
        first, second = args[_PRODUCTS[name] :][:2]
        return torch.zeros((*first.shape[:-1], second.shape[-1]), dtype=first.dtype, device=first.device)
    if name in _OTHERS:
        without = func(*map_leaves(args, _on_meta), **map_leaves(kwargs, _on_meta))
        device = args[0].device
        return map_leaves(without, lambda leaf: torch.zeros_like(leaf, device=device) if _is_tensor(leaf) else leaf)
    indexed = name == "aten::index" and all(value.constant is not None for value in inputs[1:])
    if not name.startswith("aten::") or (_NEED_VALUES.intersection(func.tags) and not indexed):
        raise ValuesNeededError
    return func(*args, **kwargs)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _on_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf
