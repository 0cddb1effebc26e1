"""The dispatch mode that the watched passes of a model are built on, and calls that run as simpler operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.cond import cond_op
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import SparsifyError


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation to `operation`, also those inside torch.cond and other higher-order operators."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else Dynamo wraps every operation, at a cost above that of many operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, HigherOrderOperator):
            return self.operation(func, args, kwargs or {})
        with self:
            return in_steps(func)(*args, **(kwargs or {}))

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of one operation of the dispatcher."""
        return func(*args, **kwargs)


def in_steps(func: HigherOrderOperator) -> Callable[..., Any]:
    """Return a function that runs a higher-order operator step by step; raises SparsifyError if it has none."""
    if func is cond_op:
        return _branch
    name = func.name()  # type: ignore[no-untyped-call]
    inner = func.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
    if inner is None or name == "scan":  # torch runs a scan only where nothing watches
        raise SparsifyError(f"the forward calls '{name}', a higher-order operator whose steps cannot be recorded")
    return inner


def _branch(condition: Any, if_true: Callable[..., Any], if_false: Callable[..., Any], operands: Any = ()) -> Any:
    return (if_true if condition else if_false)(*operands)


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """Return `F.one_hot`, which reads the values only to check them, as a comparison."""
    if num_classes < 1:
        return F.one_hot(input, num_classes)
    return (input.unsqueeze(-1) == torch.arange(num_classes, device=input.device)).long()


def padded_around(value: Tensor, pads: Sequence[int]) -> Tensor:
    """Return circular padding as a concatenation, since torch's version writes to parts of a tensor without a rule."""
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        d = value.dim() - 1 - i
        inner = value[(slice(None),) * d + (slice(max(0, -before), value.shape[d] - max(0, -after)),)]
        ends = inner.narrow(d, inner.shape[d] - max(0, before), max(0, before)), inner.narrow(d, 0, max(0, after))
        value = torch.cat([ends[0], inner, ends[1]], d) if before > 0 or after > 0 else inner
    return value
