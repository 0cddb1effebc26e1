"""The flattened arguments of a call: tensors, other leaves, and the containers around them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..calls import Inputs as Call

# For each leaf: the sizes of a float32 tensor, sizes and dtype of any other tensor, type and value of anything else.
# If leaves are in containers, the structure follows.
Shapes = tuple[tuple[int | str, ...], ...]
_WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_PLAIN = (bool, int, float, complex, str, type(None))


@dataclass(frozen=True)
class Inputs:
    """A call's tensors in order, their positions among its leaves, and its structure."""

    tensors: tuple[Tensor, ...]
    leaves: tuple[Any, ...]  # None in place of tensors
    places: tuple[int, ...]  # of the tensors among the leaves
    structure: Any
    flat: bool  # each leaf is an argument by itself

    @property
    def sizes(self) -> Shapes:
        """Sizes and types of the tensors."""
        return tuple(
            tuple(x.shape) if x.dtype == torch.float32 else (*x.shape, str(x.dtype).removeprefix("torch."))
            for x in self.tensors
        )

    @property
    def key(self) -> Shapes:
        """What a plan depends on: sizes and types of tensors, and all other leaves."""
        if self.flat and len(self.places) == len(self.leaves):
            return self.sizes
        found: list[tuple[int | str, ...]] = [(type(leaf).__name__, repr(leaf)) for leaf in self.leaves]
        for place, size in zip(self.places, self.sizes, strict=True):
            found[place] = size
        return tuple(found) if self.flat else (*found, (str(self.structure),))

    @property
    def cut(self) -> list[Tensor]:
        """The tensors that have a first dimension: images, if any."""
        return [tensor for tensor in self.tensors if tensor.dim()]

    def call(self, tensors: Sequence[Tensor] | None = None) -> Call:
        """Return the call, with these tensors in place of the call's own."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, self.tensors if tensors is None else tensors, strict=True):
            leaves[place] = tensor
        call: Call = pytree.tree_unflatten(leaves, self.structure)
        return call

    def part(self, begin: int, images: int) -> Inputs:
        """Return the inputs for `images` images from `begin` on; tensors without dimensions are shared."""
        return replace(self, tensors=tuple(x[begin : begin + images] if x.dim() else x for x in self.tensors))


def flattened(call: Call) -> Inputs:
    """Return a call, flattened."""
    leaves, structure = pytree.tree_flatten(call)
    places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    rest = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    args = call.args
    flat = not call.kwargs and len(leaves) == len(args) and all(map(operator.is_, leaves, args))
    return Inputs(tuple(leaves[place] for place in places), rest, places, structure, flat)


def images_in(values: Sequence[Any]) -> int:
    """Return the size of the first dimension if all values agree on it, else 1."""
    sizes = {len(value) if isinstance(value, Tensor) and value.dim() else 0 for value in values}
    return max(1, *sizes) if len(sizes) == 1 else 1


def unusable(inputs: Inputs) -> str:
    """Return why kernels cannot be used for these inputs, "" if they can."""
    tensors = inputs.tensors
    others = [leaf for place, leaf in enumerate(inputs.leaves) if place not in inputs.places]
    if any(type(leaf) not in _PLAIN for leaf in others) or not all(_usable(x) for x in tensors):
        return f"input of {_kinds([*tensors, *others])}: PyTorch: kernels are for float32 on the CPU"
    if torch._C._len_torch_dispatch_stack():
        return "calls within a TorchDispatchMode: PyTorch: it does not see what kernels do"
    if torch.get_default_dtype() != torch.float32:
        return f"default dtype {torch.get_default_dtype()}: PyTorch: kernels are for float32".replace("torch.", "")
    return ""


def _usable(x: Tensor) -> bool:
    right = x.dtype == torch.float32 or x.dtype in _WHOLE
    return right and type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.layout == torch.strided


def _kinds(values: Sequence[Any]) -> str:
    """Return the types and devices of inputs as text: "float16 on cuda:0"."""
    tensors = (Tensor, nn.Parameter)
    kinds = [f"{x.dtype} on {x.device}" if type(x) in tensors else type(x).__name__ for x in values]
    return ", ".join(dict.fromkeys(kinds)).replace("torch.", "")


def shown(key: Shapes) -> str:
    """Return a key as text: "2x3x32x32, 2 int64, int 3"."""
    return ", ".join(_shown(part) for part in key)


def _shown(part: tuple[int | str, ...]) -> str:
    sizes = "x".join(str(one) for one in part if isinstance(one, int))
    words = " ".join(str(one) for one in part if not isinstance(one, int))
    return " ".join(word for word in (sizes, words) if word)
