"""Reuse of operations and module calls of the first pass of a model in its second pass.

The second pass runs some modules in train mode. An operation on the same Values as an earlier one has the same results
(value numbering); a module in eval mode that is called with the Values of an earlier call returns that call's Value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from .ops import Op, Value

if TYPE_CHECKING:
    from .op_recorder import OpRecorder


class KnownOps:
    """The results of a first pass's operations, by operation, module and arguments."""

    def __init__(self, ops: Iterable[Op]) -> None:
        self._results: dict[Any, tuple[Value, ...]] = {}
        for op in ops:
            if op.overload is not None:
                self._results.setdefault(_key(op), op.results)

    def results(self, op: Op) -> tuple[Value, ...]:
        """Return the results of the same operation in the first pass; () if it did not run or draws random numbers."""
        if not self._results or op.overload is None or torch.Tag.nondeterministic_seeded in op.overload.tags:
            return ()
        found = self._results.get(_key(op), ())
        return found if [one.shape for one in found] == [one.shape for one in op.results] else ()


def _key(op: Op) -> Any:
    return op.overload, op.module, _hashable(op.args), _hashable(op.kwargs)


def _hashable(given: Any) -> Any:
    """Return a hashable form of arguments, equal only for the same Values and for numbers of the same type."""
    if isinstance(given, (tuple, list)):
        return tuple(map(_hashable, given))
    if isinstance(given, dict):
        return tuple((key, _hashable(item)) for key, item in given.items())
    return given if isinstance(given, Value) else (type(given), str(given))


class ModuleCalls:
    """The module calls of a first pass without computed activations, to answer them in the second pass."""

    def __init__(self, recorder: OpRecorder) -> None:
        self._recorder = recorder
        self._running: list[tuple[tuple[Value, ...], int]] = []
        self._outputs: dict[Any, tuple[Value, Callable[[], Tensor]]] = {}  # by module and arguments; makes zeros
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleCalls:
        leave = register_module_forward_hook(self._leave, with_kwargs=True, always_call=True)
        self._handles = [register_module_forward_pre_hook(self._enter), leave]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
            torch_module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch 2.14 leaves it there

    def answer(self, model: nn.Module) -> None:
        """Make the modules of `model` in eval mode answer the calls of the first pass; replaces their `forward`."""
        called = {id(module) for module, *_ in self._outputs}
        for module in model.modules():
            if id(module) in called and not any(below.training for below in module.modules()):
                module.__dict__["forward"] = partial(self._again, module, module.forward)

    def _again(self, module: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        values = None if kwargs else self._values(args)
        known = None if values is None else self._outputs.get((module, values))
        if known is None:
            return forward(*args, **kwargs)
        value, make_zeros = known
        with _disable_current_modes():
            zeros: Tensor = make_zeros()
            self._recorder.values.enter(zeros, value)
        return zeros

    def _enter(self, module: nn.Module, args: Any) -> None:
        values = None if module._forward_pre_hooks else self._values(args)
        self._running.append((values or (), len(self._recorder.values)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if not self._running:
            return
        values, known = self._running.pop()
        if not values or kwargs or not isinstance(outputs, Tensor) or isinstance(module, torch.jit.ScriptModule):
            return
        if values != self._values(args):  # written to
            return
        with torch._C.DisableTorchFunction():
            value = self._recorder.values.seen(outputs)
            if value is None or value.constant is not None or outputs.layout != torch.strided or 0 in outputs.stride():
                return
            if self._recorder.values.memory(outputs).number < known:
                return  # it shares memory with an earlier tensor
            self._outputs[module, values] = value, _zeros_like(outputs)

    def _values(self, args: Any) -> tuple[Value, ...] | None:
        """Return the Values of a call's arguments; None unless all of them are known tensors."""
        if not args or not all(isinstance(argument, Tensor) for argument in args):
            return None
        with torch._C.DisableTorchFunction():
            found = [self._recorder.values.seen(argument) for argument in args]
        return None if any(value is None for value in found) else tuple(found)  # type: ignore[arg-type]


def _zeros_like(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a function that returns zeros with a tensor's shape, dtype, device and strides."""
    made = partial(torch.empty_strided, tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return lambda: made().zero_()
