"""The tensor operations of one forward pass, in order: what the analyses of channels work on.

The model runs once, in eval mode, and every operation that reaches PyTorch's dispatcher is written down. That is below
modules and functions: control flow has been taken, composite functions are split into some hundred basic operations,
and models that no symbolic trace can follow are recorded like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ...calls import Inputs, inputs_of, run, tensors_in
from ..side_effects import changed_buffers, unchanged
from ..tracing.bytecode_scan import CONV_AND_LINEAR, is_torch, mentions_training
from ..tracing.one_forward import map_leaves
from .context import (
    FunctionHooks,
    Memory,
    addable_biases,
    eval_mode,
    leaves,
    module_names,
    not_compiled,
    whole_attentions,
)
from .ops import FILLS, SCALED_BY_SIZE, STALE, Filled, Op, Recording, Value, pointwise
from .sequences import sequence_op
from .shape_only import ValuesNeededError, run_shape_only


def record(model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None = None) -> Recording:
    """Return the operations of one call of `model` in eval mode; `example_input` is what `inputs_of` takes.

    `results`, if given, is filled with copies of every operation's results. The model is left as it was. Errors of the
    model's own forward are passed on. Activations are computed only if they are asked for, or decide what happens.
    """
    if results is None:
        try:
            return _record(model, example_input, None, computed=False)
        except Exception:  # noqa: BLE001 - the model's own code, or an operation, may raise anything on zeros
            pass
    return _record(model, example_input, results, computed=True)


def _record(
    model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None, *, computed: bool
) -> Recording:
    with unchanged(model), changed_buffers(model, []), eval_mode(model):
        recorder = _Recorder(model, results, computed=computed)
        outputs = recorder.run(model, example_input)
        count, problem = len(recorder.ops), ""
        idle = recorder.idle_layers(model)
        modal = modules_that_ask_for_the_mode(model)
        if idle or modal:
            more, problem = _run_in_training(recorder, model, example_input, idle, modal)
            if modal or len(recorder.idle_layers(model)) < len(idle):
                outputs += more
            else:
                del recorder.ops[count:]
    return Recording(
        tuple(recorder.ops),
        tuple(outputs),
        recorder.state,
        addable_biases(model),
        whole_attentions(model),
        eval_count=count,
        problems=(problem,) if problem else (),
        branches=tuple(recorder.branches),
    )


def _run_in_training(
    recorder: _Recorder, model: nn.Module, example_input: Any, idle: list[str], modal: list[str]
) -> tuple[list[Value], str]:
    """Run a model again with the modules around idle layers, and those that are `modal`, in train mode.

    Returns its outputs, and what went wrong. Auxiliary heads only run, or are only returned, then. Layers, dropout and
    norms among them, stay in eval mode.
    """
    around = {path.rpartition(".")[0] for path in idle} | {*modal}
    for path, module in model.named_modules():
        if any(path == outer or not path or outer.startswith(f"{path}.") for outer in around):
            module.training = True
    try:
        return recorder.run(model, example_input), ""
    except Exception as error:
        if not recorder.computed:
            raise
        if not idle:
            return [], ""  # a forward that wants targets, say: its losses are no outputs
        where = f"{idle[0]}: it runs neither in eval mode nor, with this input, in train mode"
        return [], f"{where} ({type(error).__name__}), and is not cut"


def modules_that_ask_for_the_mode(model: nn.Module) -> list[str]:
    """Return the paths of modules with layers below them whose own forward reads `training`: its outputs may differ."""
    return [
        path
        for path, module in model.named_modules()
        if not is_torch(type(module)) and mentions_training(type(module)) and any(True for _ in _layers_below(module))
    ]


def _layers_below(module: nn.Module) -> Iterator[nn.Module]:
    return (below for below in module.modules() if below is not module and below._parameters)


def own_inputs(example_input: Any) -> Inputs:
    """Return the call of an example input, with copies of its tensors: a forward may write to them."""
    inputs = inputs_of(example_input, "example_input")
    copies: Inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    return copies


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a wrapper around every operation, which takes longer than many of them

    def __init__(self, model: nn.Module, results: list[tuple[Tensor, ...]] | None, *, computed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = computed
        self.ops: list[Op] = []
        self.results = results
        self.module: list[str] = []
        self.given: list[Any] = []  # what each of these modules was called with
        self.branches: list[tuple[str, tuple[Value, ...]]] = []
        self.state: dict[str, Value] = {}
        self.values: Any = WeakIdKeyDictionary()  # tensor -> its Value, and how often its memory was written to then
        self.memories: dict[int, Memory] = {}
        self.left: list[Value] = []  # what went to other libraries, from where anything may come back
        trainable = {id(parameter) for parameter in model.parameters()}
        named: dict[int, tuple[Tensor, list[str]]] = {}
        for items in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in items:
                named.setdefault(id(tensor), (tensor, []))[1].append(name)
        for tensor, names in named.values():
            value = Value(_shape(tensor), tensor.detach(), tuple(names), id(tensor) in trainable)
            self.state |= dict.fromkeys(names, self.enter(tensor, value))

    def run(self, model: nn.Module, example_input: Any) -> list[Value]:
        """Note what a model does with copies of an example input; return its outputs."""
        inputs = own_inputs(example_input)
        for tensor in tree_flatten(inputs)[0]:
            if isinstance(tensor, Tensor):
                self.enter(tensor, Value(_shape(tensor)))
        seen = FunctionHooks(self.leave, self.scaled, self.whole)
        with not_compiled(), module_names(model, self.module, self.given), torch.no_grad(), self, seen:
            outputs = run(model, inputs)
        return [self.value_of(leaf) for leaf in tensors_in(outputs)]

    def idle_layers(self, model: nn.Module) -> list[str]:
        """Return the paths of convolutions and linear layers whose weight no operation has read."""
        read = {value for op in self.ops for value in op.inputs}
        layers = (path for path, module in model.named_modules() if isinstance(module, CONV_AND_LINEAR))
        weights = ((path, self.state.get(f"{path}.weight" if path else "weight")) for path in layers)
        return [path for path, value in weights if value is not None and value not in read]

    def enter(self, tensor: Tensor, value: Value) -> Value:
        """Note the Value of a tensor, and return it."""
        memory = self.memory(tensor)
        memory.values.append(value)
        self.values[tensor] = value, memory.writes
        return value

    def memory(self, tensor: Tensor) -> Memory:
        """Return what is known of a tensor's memory."""
        if tensor.layout != torch.strided:
            return Memory(torch.UntypedStorage())  # type: ignore[no-untyped-call]
        storage = tensor.untyped_storage()
        if storage._cdata not in self.memories:
            self.memories[storage._cdata] = Memory(storage)
        return self.memories[storage._cdata]

    def value_of(self, tensor: Tensor) -> Value:
        """Return the Value of a tensor; one that nothing is known of is a constant, unless its memory is another's."""
        memory = self.memory(tensor)
        value: Value | None
        value, writes = self.values.get(tensor, (None, -1))
        if value is not None and writes == memory.writes:
            return value
        known = list(dict.fromkeys([*memory.values, *([value] if value is not None else []), *self.left]))
        constant = all(other.constant is not None for other in known)
        if constant and not (memory.writes and any(_from_model(other) for other in known)):
            return self.enter(tensor, Value(_shape(tensor), tensor.detach()))
        made = _Derived(_shape(tensor), tensor.detach()) if constant else Value(_shape(tensor))
        self.ops.append(Op(STALE, None, tuple(known), {}, (made,), self.where()))
        return self.enter(tensor, made)

    def where(self) -> str:
        """Return the path of the module whose forward is running."""
        return self.module[-1] if self.module else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}

        def value_of(leaf: Any) -> Any:
            return self.value_of(leaf) if isinstance(leaf, Tensor) else leaf

        given, given_kwargs = map_leaves((args, kwargs), value_of)
        inputs = leaves((given, given_kwargs), Value)
        if func._schema.is_mutable:
            self._written(func, args, kwargs)
        outcome = func(*args, **kwargs) if self.computed else run_shape_only(func, args, kwargs, inputs)
        name = func._schema.name.removeprefix("aten::")
        tensors = leaves(outcome, Tensor)
        if isinstance(outcome, (bool, int, float)) and any(value.constant is None for value in inputs):
            if not self.computed:
                raise ValuesNeededError
            self.decided()
        if name.startswith("new_") or all(v.constant is not None and not _from_model(v) for v in inputs):
            self._filled(func, name, given, given_kwargs, inputs, tensors)
            return outcome
        constant = all(value.constant is not None for value in inputs)
        results = []
        for tensor in tensors:
            value = _Derived(_shape(tensor), tensor.detach()) if constant else Value(_shape(tensor))
            results.append(self.enter(tensor, value))
        if any(argument.is_out for argument in func._schema.arguments):
            name, func = f"{name}(out=)", None
        if not constant or results:
            self._note(Op(name, func, tuple(given), given_kwargs, tuple(results), self.where()), tensors)
        return outcome

    def decided(self) -> None:
        """Note that the running forward asked what an activation holds: it may do something else with another."""
        arguments = leaves(self.given[-1] if self.given else (), Tensor)
        with _disable_current_modes():
            self.branches.append((self.where(), tuple(self.value_of(tensor) for tensor in arguments)))

    def _note(self, op: Op, tensors: list[Tensor]) -> None:
        self.ops.append(op)
        if self.results is not None:
            # Other operations, which only note something, have no results.
            self.results += [()] * (len(self.ops) - 1 - len(self.results))
            self.results.append(tuple(tensor.detach().clone() for tensor in tensors))

    def _filled(
        self, func: Any, name: str, given: Any, kwargs: Any, inputs: list[Value], tensors: list[Tensor]
    ) -> None:
        """Note a tensor of one number whose sizes were given, and what is such a tensor after its entries moved."""
        sizes = [max(1, *tensor.shape) for tensor in tensors if tensor.dim()]
        if name in FILLS:
            args: tuple[Any, ...] = ()
        elif inputs and all(isinstance(value, Filled) for value in inputs):
            args = tuple(given)
        else:
            return
        if len(tensors) != 1 or max(sizes, default=1) == 1:
            return
        op = Op(
            name, func, args, kwargs if args else {}, (Filled(_shape(tensors[0]), tensors[0].detach()),), self.where()
        )
        if not args or op.is_movement or (pointwise(op) and bool((tensors[0] == tensors[0].flatten()[0]).all())):
            self.enter(tensors[0], op.results[0])
            self._note(op, tensors)

    def _written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that tensors are about to be written to; constants keep what they held."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                given = kwargs.get(argument.name, args[i] if i < len(args) else None)
                for tensor in leaves(given, Tensor):
                    memory = self.memory(tensor)
                    memory.writes += 1
                    for value in memory.values:
                        if value.constant is not None:
                            value.constant = value.constant.clone()

    def leave(self, tensor: Tensor, how: str) -> None:
        """Note that a tensor's content goes where no operation can be seen."""
        value = self.value_of(tensor)
        if value.constant is None:
            if not self.computed:
                raise ValuesNeededError
            self.ops.append(Op(how, None, (value,), {}, (), self.where()))
            self.left.append(value)
            if how != "data_ptr":
                self.decided()

    def whole(self, func: Any, *args: Any) -> Any:
        """Call one of torch's functions for sequences, and note it as one operation."""
        given = map_leaves(args, lambda leaf: self.value_of(leaf) if isinstance(leaf, Tensor) else leaf)
        with _disable_current_modes():
            outcome = func(*args)
        tensors = leaves(outcome, Tensor)
        results = tuple(Value(_shape(tensor)) for tensor in tensors)
        if func.__name__ == "_pack_padded_sequence" and given[1].constant is not None:
            results[1].constant = tensors[1]  # how many sequences there are at each operation
        for tensor, value in zip(tensors, results, strict=True):
            self.enter(tensor, value)
        self._note(sequence_op(func.__name__, given, results, self.where()), tensors)
        return outcome

    def scaled(self, *tensors: Tensor) -> None:
        """Note that something is scaled by the root of the last size of tensors."""
        values = tuple(self.value_of(tensor) for tensor in tensors)
        self.ops.append(Op(SCALED_BY_SIZE, None, values, {}, (), self.where()))


@dataclass(eq=False)
class _Derived(Value):
    """A constant that was made from the model's tensors."""


def _from_model(value: Value) -> bool:
    return bool(value.names) or isinstance(value, _Derived)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
