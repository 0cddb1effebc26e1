"""The tensor operations of one forward pass, in order: what the analyses of channels work on.

The model runs once, in eval mode, and every operation that reaches PyTorch's dispatcher is written down. That is below
modules and functions: control flow has been taken, composite functions are split into some hundred basic operations,
and models that no symbolic trace can follow are recorded like any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

STALE = "stale"
SCALED_BY_SIZE = "scaled_by_size"


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass: its shape; what it holds if that does not depend on the input; its name(s) in the model."""

    shape: tuple[int, ...]
    constant: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: its name without overload ("convolution"), its arguments with Values for tensors, its results."""

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]
    module: str

    @property
    def inputs(self) -> list[Value]:
        """The Values among the arguments, in order."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Value)]


@dataclass(frozen=True)
class Tape:
    """All steps of a pass that depend on its input or on the model's tensors, and the Values that it returned."""

    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]
    state: dict[str, Value] = field(default_factory=dict)


def record(model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None = None) -> Tape:
    """Return the operations of `model(example_input)` in eval mode; a tuple holds several arguments.

    `results`, if given, is filled with copies of every step's results. The model is left as it was. Errors of the
    model's own forward are passed on.
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    recorder = _Recorder(model, results)
    for tensor in tree_flatten(args)[0]:
        if isinstance(tensor, Tensor):
            recorder.enter(tensor, Value(tuple(tensor.shape)))
    with _eval_mode(model), _module_names(model, recorder), torch.no_grad(), recorder, _AttentionScales(recorder):
        outputs = model(*args)
    found = [recorder.value_of(leaf) for leaf in tensors_in(outputs)]
    return Tape(tuple(recorder.steps), tuple(found), recorder.state)


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors in a model's output, whatever holds them: containers, data classes, plain objects."""
    leaves = []
    for leaf in tree_flatten(outputs)[0]:
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            leaves += tensors_in(dict(vars(leaf)))
    return leaves


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, results: list[tuple[Tensor, ...]] | None) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.results = results
        self.module: list[str] = []
        self.state: dict[str, Value] = {}
        self.values: Any = WeakIdKeyDictionary()
        self.sharing: dict[int, list[weakref.ref[Tensor]]] = {}
        named: dict[int, tuple[Tensor, list[str]]] = {}
        for items in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in items:
                named.setdefault(id(tensor), (tensor, []))[1].append(name)
        for tensor, names in named.values():
            value = Value(tuple(tensor.shape), tensor.detach(), tuple(names))
            self.values[tensor] = value
            self.state |= dict.fromkeys(names, value)

    def enter(self, tensor: Tensor, value: Value) -> None:
        self.values[tensor] = value
        if value.constant is None or value.names:
            self.sharing.setdefault(_storage(tensor), []).append(weakref.ref(tensor))

    def value_of(self, tensor: Tensor) -> Value:
        """Return the Value of a tensor; one that nothing is known of is a constant."""
        value: Value | None = self.values.get(tensor)
        if value is None:
            value = Value(tuple(tensor.shape), tensor.detach())
            self.values[tensor] = value
        if isinstance(value, _Stale):
            step = Step(STALE, None, (value.old, value.new), {}, (Value(tuple(tensor.shape)),), self.where())
            self.steps.append(step)
            value = self.values[tensor] = step.results[0]
        return value

    def where(self) -> str:
        """Return the path of the module whose forward is running."""
        return self.module[-1] if self.module else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, given_kwargs = tree_map(lambda leaf: self.value_of(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        inputs = [leaf for leaf in tree_flatten((given, given_kwargs))[0] if isinstance(leaf, Value)]
        outcome = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_flatten(outcome)[0] if isinstance(leaf, Tensor)]
        if name.startswith("new_") or all(v.constant is not None and not _from_model(v) for v in inputs):
            return outcome
        constant = all(value.constant is not None for value in inputs)
        results = []
        for tensor in tensors:
            value = _Derived(tuple(tensor.shape), tensor.detach()) if constant else Value(tuple(tensor.shape))
            if func._schema.is_mutable:
                self._changed(tensor, value)
            self.enter(tensor, value)
            results.append(value)
        if not constant or results:
            self.steps.append(Step(name, func, tuple(given), given_kwargs, tuple(results), self.where()))
            if self.results is not None:
                # Other steps, which only note something, have no results.
                self.results += [()] * (len(self.steps) - 1 - len(self.results))
                self.results.append(tuple(tensor.detach().clone() for tensor in tensors))
        return outcome

    def _changed(self, tensor: Tensor, value: Value) -> None:
        """Note that other tensors on the same memory changed with this one."""
        for reference in self.sharing.get(_storage(tensor), []):
            other = reference()
            if other is not None and other is not tensor:
                old = self.values.get(other)
                if old is not None and not isinstance(old, _Stale):
                    self.values[other] = _Stale(old.shape, None, (), old, value)
        base = tensor._base
        if base is not None and base is not tensor and not isinstance(self.values.get(base), _Stale):
            old = self.values.get(base) or Value(tuple(base.shape), base.detach())
            self.values[base] = _Stale(old.shape, None, (), old, value)


class _AttentionScales(TorchFunctionMode):
    """Notes where attention divides by the root of its operands' last size, which the basic operations do not show."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            operands = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2]
            values = tuple(self.recorder.value_of(tensor) for tensor in operands)
            self.recorder.steps.append(Step(SCALED_BY_SIZE, None, values, {}, (), self.recorder.where()))
        return func(*args, **kwargs)


@dataclass(eq=False)
class _Derived(Value):
    """A constant that was made from the model's tensors."""


@dataclass(eq=False)
class _Stale(Value):
    """A tensor whose memory was written to through another one."""

    old: Value = None  # type: ignore[assignment]
    new: Value = None  # type: ignore[assignment]


def _from_model(value: Value) -> bool:
    return bool(value.names) or isinstance(value, _Derived)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole encoder layer says nothing
    try:
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _module_names(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Let the recorder know which module's forward is running."""

    def leave(*_: Any) -> None:
        recorder.module.pop()

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: recorder.module.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
