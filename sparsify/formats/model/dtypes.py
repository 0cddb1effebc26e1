"""Conversion between torch tensors and the bits in a file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ...errors import SparsifyError
from ..types import Array, Shape

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CASTS: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def stored_dtype(name: str, tensor: Tensor, to: str | None) -> str:
    """Return the container's name of the type a tensor is stored in; `to` is the type to cast to, or None.

    Floating values of 16 bits and more are cast, everything else is stored as it is. Raises SparsifyError for a tensor
    that cannot be stored.
    """
    if tensor.is_meta or is_lazy(tensor):
        raise SparsifyError(f"save: {name} has no values yet (meta device or lazy module)")
    if tensor.layout != torch.strided or tensor.dtype not in _NAMES:
        raise SparsifyError(f"save: {name}: cannot store a tensor of {tensor.dtype}, {tensor.layout}")
    if to is not None and tensor.is_floating_point() and tensor.element_size() >= 2:
        return _NAMES[CASTS[to]]
    return _NAMES[tensor.dtype]


def bits(tensor: Tensor) -> Array:
    """Return a tensor's elements, flat in C order, as unsigned integers of their width; a copy only if needed."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    width = flat.element_size()
    content: Array = flat.view(_INTEGERS[width]).numpy()
    return content.view(f"<u{width}")


def from_bits(content: Array, dtype: str, shape: Shape) -> Tensor:
    """Return the tensor with these bits, sharing their memory. Raises ValueError for a bool that is neither 0 nor 1."""
    if dtype == "BOOL" and content.size and content.max() > 1:
        raise ValueError("a bool is neither 0 nor 1")
    signed = torch.from_numpy(content.view(f"<i{content.itemsize}" if content.itemsize > 1 else np.uint8))
    return signed.view(TORCH_DTYPES[dtype]).reshape(shape)


def dtype_name(tensor: Tensor) -> str:
    """Return the container's name of a tensor's own type."""
    return _NAMES[tensor.dtype]


def stored_bits(name: str, tensor: Tensor, dtype: str) -> Array:
    """Return the bits of a tensor in the type it is stored in. Raises SparsifyError if a finite value overflows."""
    if tensor.dtype == TORCH_DTYPES[dtype]:
        return bits(tensor)
    done = tensor.detach().to(TORCH_DTYPES[dtype])
    infinite = done.isinf()
    if bool(infinite.any()) and bool((infinite & ~tensor.isinf()).any()):
        raise SparsifyError(f"save: {name} has values too large for {done.dtype}".replace("torch.", ""))
    return bits(done)
