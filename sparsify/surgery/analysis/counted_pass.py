"""Count the multiply-adds of a forward pass while it runs, which is cheaper than a recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..recording.context import FunctionHooks, leaves, not_compiled
from ..recording.operation_mode import OperationMode
from ..recording.ops import Op, Value
from ..recording.sequences import sequence_op
from ..recording.shape_only import ValuesNeededError, run_shape_only
from ..tracing.one_forward import map_leaves
from .mac_counts import is_counted, multiply_adds, uncounted


class CountedPass(OperationMode):
    """Counts multiply-adds in `counted_pass`; `complete` is False after an operation that cannot be counted.

    With `computed` False, costly operations return zeros, and what needs values raises ValuesNeededError.
    """

    def __init__(self, *, computed: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = computed
        self.multiply_adds = 0
        self.complete = True

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of one operation, and add its multiply-adds."""
        if self.computed:
            outcome = func(*args, **kwargs)
        else:
            inputs = leaves((_values(args), _values(kwargs)), Value)
            outcome = run_shape_only(func, args, kwargs, inputs)
            if inputs and isinstance(outcome, (bool, int, float)):
                raise ValuesNeededError
        name = func._schema.name.removeprefix("aten::")
        if is_counted(name):
            self._add(Op(name, func, _values(args), _values(kwargs), tuple(_values(leaves(outcome, Tensor))), ""))
        elif uncounted([Op(name, func, (), {}, (), "")]):
            self.complete = False
        return outcome

    def leave(self, tensor: Tensor, how: str) -> None:
        """Note that a tensor is passed to another library."""
        if not self.computed:
            raise ValuesNeededError
        self.complete = False

    def whole(self, func: Any, *args: Any) -> Any:
        """Call one of torch's sequence functions and count it as one operation."""
        with _disable_current_modes():
            outcome = func(*args)
        self._add(sequence_op(func.__name__, _values(args), tuple(_values(leaves(outcome, Tensor))), ""))
        return outcome

    def _add(self, op: Op) -> None:
        self.multiply_adds += multiply_adds(op)


@contextmanager
def counted_pass(*, computed: bool = True) -> Iterator[CountedPass]:
    """Yield a CountedPass that counts the multiply-adds of the forward pass inside the block."""
    counting = CountedPass(computed=computed)
    with not_compiled(), counting, FunctionHooks(counting.leave, lambda *_: None, counting.whole):
        yield counting


def _values(given: Any) -> Any:
    return map_leaves(given, lambda leaf: Value(tuple(leaf.shape)) if isinstance(leaf, Tensor) else leaf)
