"""The dispatch mode under which a model runs while its operations are recorded."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from ...calls import held_attributes, run, tensors_in
from ..module_walk import full_name, named_modules
from ..tracing.bytecode_scan import CONV_AND_LINEAR
from ..tracing.one_forward import map_leaves
from .context import (
    FunctionHooks,
    asked_gradient_mode,
    leaves,
    module_names,
    named_tensors,
    not_compiled,
    own_inputs,
)
from .operation_mode import OperationMode
from .ops import FILLS, LIKE, SCALED_BY_SIZE, STALE, VALUES, Derived, Filled, Noise, Op, Value, from_model, pointwise
from .second_pass import KnownOps
from .selected import selected_counts
from .sequences import sequence_op
from .shape_only import ValuesNeededError, run_shape_only
from .tensor_values import TensorValues, plain

# Operations of forward-mode gradients that return a bool about memory, not about values.
_OF_MEMORY = frozenset({"aten::_has_same_storage_numel", "aten::is_same_size"})


class OpRecorder(OperationMode):
    """Records in `ops` the operations of the forward passes that `run` makes.

    With `computed` False, costly operations return zeros of the right shape. `results`, if given, receives copies of
    every operation's results. `state` maps the names of the model's tensors to their Values.
    """

    def __init__(self, model: nn.Module, results: list[tuple[Tensor, ...]] | None, *, computed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = computed
        self.ops: list[Op] = []
        self.results = results
        self.module: list[str] = []
        self.given: list[Any] = []  # the arguments of each of these modules
        self.branches: list[tuple[str, tuple[Value, ...], str]] = []
        self.recurrent = {
            name
            for name, one in model.named_modules()
            if isinstance(one, nn.RNNBase) and type(one).forward.__module__ == nn.LSTM.forward.__module__
        }
        self.in_objects: set[Value] = set()
        self.state: dict[str, Value] = {}
        self.values = TensorValues()
        self.left: list[Value] = []  # passed to other libraries, which may return them changed
        self.inputs: list[Value] = []  # the call's inputs, the same Values in every pass
        self.known = KnownOps(())
        self.counts: list[int] = []  # sizes that depend on values of activations
        self.asking: dict[str, tuple[Value, ...]] = {}  # module that checks whether gradients are on -> its inputs
        for tensor, names, trainable in named_tensors(model):
            value = Value(_shape(tensor), tensor.detach(), names, trainable)
            self.state |= dict.fromkeys(names, self.values.enter(tensor, value))

    def run(self, model: nn.Module, example_input: Any, *, gradients: bool = False) -> list[Value]:
        """Record a call of `model` and return the Values of its outputs; `gradients`: tell it that gradients are on."""
        inputs = own_inputs(example_input)
        tensors = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
        self.inputs = self.inputs or [Value(_shape(tensor)) for tensor in tensors]
        for tensor, value in zip(tensors, self.inputs, strict=True):
            self.values.enter(tensor, value)
        seen = FunctionHooks(self.leave, self.scaled, self.whole, self.asked, gradients=gradients)
        asked = asked_gradient_mode(self.asked, gradients=gradients)
        with not_compiled(), module_names(model, self.module, self.given), asked, torch.no_grad(), catch_warnings():
            filterwarnings("ignore", "None of the inputs have requires_grad")  # of checkpointing; gradients are off
            with self, seen:
                outputs = run(model, inputs)
        in_containers = set(map(id, _in_containers(outputs)))
        found = tensors_in(outputs)
        self.in_objects |= {self.value_of(leaf) for leaf in found if id(leaf) not in in_containers}
        return [self.value_of(leaf) for leaf in found]

    def idle_layers(self, model: nn.Module) -> list[str]:
        """Return the paths of convolutions and linear layers whose weight no recorded operation reads."""
        read = {value for op in self.ops for value in op.inputs}
        layers = (path for path, module in named_modules(model) if isinstance(module, CONV_AND_LINEAR))
        weights = ((path, self.state.get(full_name(path, "weight"))) for path in layers)
        return [path for path, value in weights if value is not None and value not in read]

    def value_of(self, tensor: Tensor) -> Value:
        """Return the Value of a tensor.

        An unknown tensor is a constant, unless it shares memory with a Value that depends on the input or was written
        to.
        """
        tensor = plain(tensor)
        value = self.values.seen(tensor)
        if value is not None:
            return value
        known = list(dict.fromkeys([*self.values.sharing(tensor), *self.left]))
        constant = all(other.constant is not None for other in known)
        written = self.values.memory(tensor).writes
        if constant and not (written and any(from_model(other) for other in known)):
            return self.values.enter(tensor, Value(_shape(tensor), tensor.detach()))
        made = Derived(_shape(tensor), tensor.detach()) if constant else Value(_shape(tensor))
        self.ops.append(Op(STALE, None, tuple(known), {}, (made,), self.where()))
        return self.values.enter(tensor, made)

    def where(self) -> str:
        """Return the path of the module whose forward is running."""
        return self.module[-1] if self.module else ""

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of one operation, and record it."""

        def value_of(leaf: Any) -> Any:
            return self.value_of(leaf) if isinstance(leaf, Tensor) else leaf

        given, given_kwargs = map_leaves((args, kwargs), value_of)
        inputs = leaves((given, given_kwargs), Value)
        if func._schema.name in _OF_MEMORY:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            self.values.written(func, args, kwargs)
        outcome = func(*args, **kwargs) if self.computed else run_shape_only(func, args, kwargs, inputs)
        name = func._schema.name.removeprefix("aten::")
        tensors = leaves(outcome, Tensor)
        self.counts += selected_counts(func, args, inputs, tensors)
        if isinstance(outcome, (bool, int, float)) and any(value.constant is None for value in inputs):
            if not self.computed:
                raise ValuesNeededError
            self.decided()
        if name.startswith("new_") or all(v.constant is not None and not from_model(v) for v in inputs):
            self._filled(func, name, given, given_kwargs, inputs, tensors)
            return outcome
        constant = all(value.constant is not None for value in inputs)
        kind = Derived if constant else Value
        results = tuple(kind(_shape(tensor), tensor.detach() if constant else None) for tensor in tensors)
        if any(argument.is_out for argument in func._schema.arguments):
            name, func = f"{name}(out=)", None
        op = Op(name, func, tuple(given), given_kwargs, results, self.where())
        known = self.known.results(op)
        for tensor, value in zip(tensors, known or results, strict=True):
            self.values.enter(tensor, value)
        if not known and (results or not constant):
            self._note(op, tensors)
        return outcome

    def asked(self) -> None:
        """Note that the running forward checks whether gradients are on."""
        if self.where() not in self.asking:
            self.asking[self.where()] = self.entering()

    def entering(self) -> tuple[Value, ...]:
        """Return the Values of the arguments of the running forward."""
        with _disable_current_modes():
            return tuple(self.value_of(tensor) for tensor in leaves(self.given[-1] if self.given else (), Tensor))

    def decided(self) -> None:
        """Note that the running forward reads an activation's values: it may branch differently for another input."""
        if self.where() not in self.recurrent:  # there, batch sizes of packed sequences only set sizes
            self.branches.append((self.where(), self.entering(), VALUES))

    def _note(self, op: Op, tensors: list[Tensor]) -> None:
        self.ops.append(op)
        if self.results is not None:
            # Pseudo-operations recorded in between have no results.
            self.results += [()] * (len(self.ops) - 1 - len(self.results))
            self.results.append(tuple(tensor.detach().clone() for tensor in tensors))

    def _filled(
        self, func: Any, name: str, given: Any, kwargs: Any, inputs: list[Value], tensors: list[Tensor]
    ) -> None:
        """Record a tensor of explicit sizes filled with one number, or one moved or computed element-wise from such."""
        sizes = [max(1, *tensor.shape) for tensor in tensors if tensor.dim()]
        if name in FILLS:
            args: tuple[Any, ...] = ()
        elif inputs and all(isinstance(value, Filled) for value in inputs):
            args = tuple(given)
        else:
            return
        if len(tensors) != 1 or max(sizes, default=1) == 1 or tensors[0].is_meta:
            return
        drawn = name == "bernoulli_" or any(isinstance(value, Noise) for value in inputs)
        kind, held = (Noise, torch.ones_like(tensors[0])) if drawn else (Filled, tensors[0].detach())
        op = Op(name, func, args, kwargs if args else {}, (kind(_shape(tensors[0]), held),), self.where())
        alike = drawn or not held.numel() or bool((held == held.flatten()[0]).all())
        if not args or op.is_movement or name in (*LIKE, "bernoulli_") or (pointwise(op) and alike):
            self.values.enter(tensors[0], op.results[0])
            self._note(op, tensors)

    def leave(self, tensor: Tensor, how: str) -> None:
        """Record that the values of a tensor leave PyTorch through the method `how`."""
        value = self.value_of(tensor)
        if value.constant is None:
            if not self.computed:
                raise ValuesNeededError
            self.ops.append(Op(how, None, (value,), {}, (), self.where()))
            self.left.append(value)
            if how != "data_ptr":
                self.decided()

    def whole(self, func: Any, *args: Any) -> Any:
        """Call one of torch's sequence functions and record it as one operation."""
        given = map_leaves(args, lambda leaf: self.value_of(leaf) if isinstance(leaf, Tensor) else leaf)
        with _disable_current_modes():
            outcome = func(*args)
        tensors = leaves(outcome, Tensor)
        results = tuple(Value(_shape(tensor)) for tensor in tensors)
        if func.__name__ == "_pack_padded_sequence" and given[1].constant is not None:
            results[1].constant = tensors[1]  # the number of sequences at each time step
        for tensor, value in zip(tensors, results, strict=True):
            self.values.enter(tensor, value)
        self._note(sequence_op(func.__name__, given, results, self.where()), tensors)
        return outcome

    def scaled(self, *tensors: Tensor) -> None:
        """Record that attention scales by the square root of the last size of these tensors."""
        values = tuple(self.value_of(tensor) for tensor in tensors)
        self.ops.append(Op(SCALED_BY_SIZE, None, values, {}, (), self.where()))


def _in_containers(outputs: Any, _within: tuple[int, ...] = ()) -> list[Any]:
    """Return what is in nested containers and dataclasses, as opposed to other objects."""
    found = []
    for leaf in tree_flatten(outputs)[0]:
        fields = is_dataclass(leaf) and not isinstance(leaf, type) and id(leaf) not in _within
        found += _in_containers(held_attributes(leaf), (*_within, id(leaf))) if fields else [leaf]
    return found


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
