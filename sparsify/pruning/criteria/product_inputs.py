"""The inputs of matrices that a module's own forward multiplies with, recorded as the products are called."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Functions that compute `inputs @ matrix` -> the positions of the two among their arguments.
_PRODUCTS = {
    **dict.fromkeys((torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), (0, 1)),
    **dict.fromkeys((torch.addmm, Tensor.addmm), (1, 2)),
}
_SAME = (Tensor.detach, Tensor.requires_grad_)  # functions that return the same effective weight


class ProductInputs(TorchFunctionMode):
    """Adds to `sums`, by name, the squared inputs that each entry of the watched matrices is multiplied with.

    A matrix is identified by its mask, when that is applied. `unseen` has the names of those with other readers too.
    """

    def __init__(self, sums: dict[str, Tensor]) -> None:
        super().__init__()
        self.sums = sums
        self.unseen: dict[str, None] = {}
        self._names: dict[int, str] = {}  # by the id of the mask
        self._effective: dict[int, tuple[str, Tensor]] = {}  # kept alive, so that ids stay unique

    def watch(self, mask: Tensor, name: str) -> None:
        """Watch the matrix with this mask."""
        self._names[id(mask)] = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.where and len(args) == 3 and id(args[0]) in self._names:
            self._effective[id(result)] = self._names[id(args[0])], result
        elif self._effective:
            self._look(func, args, kwargs, result)
        return result

    def forget(self) -> None:
        """Release the effective weights of the last forward pass."""
        self._effective.clear()

    def _look(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and id(one) in self._effective]
        if not given or not any(isinstance(one, Tensor) for one in tree_leaves(result)):
            return
        name = self._effective[id(given[0])][0]
        inputs = _inputs(func, args, kwargs, given[0]) if len(given) == 1 else None
        if func in _SAME:
            self._effective[id(result)] = name, result
        elif inputs is None:
            self.unseen.update(dict.fromkeys(self._effective[id(one)][0] for one in given))
        else:
            squares = inputs.detach().to(torch.float64).square().reshape(-1, inputs.shape[-1]).sum(0)
            rows = squares.expand(given[0].shape) if func is F.linear else squares[:, None].expand(given[0].shape)
            self.sums[name] = self.sums[name] + rows if name in self.sums else rows


def _inputs(func: Any, args: Any, kwargs: Any, matrix: Tensor) -> Tensor | None:
    """Return the inputs that `matrix` is multiplied with, last dimension summed over; None for other functions."""
    first, second = (0, 1) if func is F.linear else _PRODUCTS.get(func, (0, 0))
    scaled = kwargs.keys() - {"bias", "out"}
    if second == 0 or len(args) <= second or args[second] is not matrix or scaled or matrix.dim() != 2:
        return None
    inputs = args[first]
    return inputs if isinstance(inputs, Tensor) and inputs.shape[-1] in matrix.shape else None
