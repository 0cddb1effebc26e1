"""Weights that a forward computes from its parameters: replaced where a conv or linear operation takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import TorchFunctionMode

from .. import ops

Replace = Callable[[Any], Any]
_CONV_AND_LINEAR = tuple(ops.MASKED)


class Operands(TorchFunctionMode):
    """While active, weights computed from the given parameters are replaced in conv and linear operations.

    `replacements` are pairs of a parameter and a function of the operand that was computed from it, which has the
    parameter's shape. What is computed from parameters and `buffers` alone is followed from operation to operation;
    an operand that is of unknown origin (a custom autograd function hides it) goes by its shape.
    """

    def __init__(self, replacements: Sequence[tuple[Any, Replace]], buffers: Sequence[Tensor]) -> None:
        super().__init__()
        self.replacements = replacements
        # Tensors that depend on no input, kept alive so that none is taken for another, and what each comes from.
        self.known: list[tuple[Any, tuple[int, ...]]] = [(p, (i,)) for i, (p, _) in enumerate(replacements)]
        self.known += [(buffer, ()) for buffer in buffers]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONV_AND_LINEAR:
            if len(args) > 1:
                args = (args[0], self._replaced(args[1]), *args[2:])
            else:
                kwargs = {**kwargs, "weight": self._replaced(kwargs["weight"])}
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        origins = [self._origin(tensor) for tensor in _tensors((*args, *kwargs.values()))]
        if None not in origins:
            sources = tuple(dict.fromkeys(i for origin in origins for i in origin or ()))
            self.known += [(tensor, sources) for tensor in _tensors((result,))]
        return result

    def _origin(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the numbers of the parameters that a tensor comes from, or None if it may depend on an input."""
        for known, sources in self.known:
            if known is tensor:
                return sources
        is_parameter = isinstance(tensor, nn.Parameter) or (isinstance(tensor, Proxy) and tensor.node.op == "get_attr")
        return () if is_parameter else None

    def _replaced(self, operand: Any) -> Any:
        origin = self._origin(operand)
        sources = range(len(self.replacements)) if origin is None else origin
        found = [i for i in sources if _same_shape(self.replacements[i][0], operand)]
        if not found or (origin is None and len(found) > 1):
            return operand
        return self.replacements[found[0]][1](operand)


def _same_shape(parameter: Any, operand: Any) -> bool:
    if isinstance(operand, Proxy) or isinstance(parameter, Proxy):
        return True  # a trace does not know shapes; the origin decides
    return bool(parameter.shape == operand.shape)


def _tensors(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (Tensor, Proxy)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
