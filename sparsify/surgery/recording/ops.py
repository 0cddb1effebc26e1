"""The intermediate representation of a recorded forward pass: Ops on Values, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from .broadcast_forms import is_movement, nonzero
from .context import leaves

STALE = "stale"
# What a forward may ask that decides what it does.
VALUES = "what activations hold"
GRADIENTS = "whether gradients are on"
SCALED_BY_SIZE = "scaled_by_size"
# Operations by which Python code reads the values of a tensor.
DATA_DEPENDENT = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "allclose", "tolist", "numpy"})
_POINTWISE_TOO = "copy fill masked_fill _prelu_kernel where hardswish hardsigmoid mish log_sigmoid leaky_relu".split()
# Operations that make a tensor of one number in explicit sizes.
FILLS = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like")  # that make one in the sizes of another


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass.

    `constant` holds its values if no input affects them; `names` are its names in the model's `state_dict`.
    """

    shape: tuple[int, ...]
    constant: Tensor | None = None
    names: tuple[str, ...] = ()
    trainable: bool = False  # a parameter of the model


@dataclass(eq=False)
class Derived(Value):
    """A constant computed from the model's tensors."""


def from_model(value: Value) -> bool:
    """Whether a constant is one of the model's tensors, or computed from them."""
    return bool(value.names) or isinstance(value, Derived)


@dataclass(eq=False)
class Filled(Value):
    """A constant filled with one number, in explicit sizes, as torch.zeros returns it."""


@dataclass(eq=False)
class Noise(Filled):
    """Random numbers in explicit sizes, as feature dropout draws them; `constant` holds ones: all may be nonzero."""


@dataclass(frozen=True, eq=False)
class Op:
    """One operation of the pass.

    `name` is its name without overload ("convolution"), `overload` torch's OpOverload (None for what is no dispatcher
    operation), `args` and `kwargs` its arguments with Values for tensors, `module` the path of the module it ran in.
    """

    name: str
    overload: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]
    module: str

    @cached_property
    def inputs(self) -> list[Value]:
        """The Values among the arguments, in order."""
        return leaves((self.args, self.kwargs), Value)

    @cached_property
    def is_movement(self) -> bool:
        """Whether it is a movement: its results are entries of its first argument, in other places."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Value) or not self.results:
            return False
        if self.name in ("index", "index_select") and self.constant_args is None:
            return False  # the input decides the places
        return is_movement(self.name, first.shape, self.results[0].shape, self.args)

    def argument(self, name: str) -> Any:
        """Return the argument called `name` in the operation's schema, or its default, or None."""
        for i, argument in enumerate(self.overload._schema.arguments):
            if argument.name == name:
                given = self.args[i] if i < len(self.args) else argument.default_value
                return self.kwargs.get(name, given)
        return None

    @cached_property
    def constant_args(self) -> Any:
        """The arguments after the first, with tensors in place of constant Values; None if one depends on the input."""
        return _constants(self.args[1:])


def concat_inputs(op: Op) -> list[Value]:
    """Return the tensors that a cat or stack joins; cat ignores empty vectors."""
    return [value for value in op.args[0] if op.name == "stack" or value.shape != (0,)]


def pointwise(op: Op) -> bool:
    """Whether an operation is element-wise with broadcast operands and one result."""
    return len(op.results) == 1 and op.overload is not None and _is_pointwise(op.name, op.overload)


@cache
def _is_pointwise(name: str, overload: Any) -> bool:
    functional = getattr(torch.ops.aten, name.rstrip("_"), None)  # the tag is not set on those in place
    if name.endswith("_") and functional is not None:
        overloads = [getattr(functional, one) for one in functional.overloads()]
    else:
        overloads = [overload]
    return any(torch.Tag.pointwise in o.tags for o in overloads) or name.rstrip("_") in _POINTWISE_TOO


def dims_of(op: Op, value: Value, position: int = 1) -> list[int]:
    """Return the dimensions of `value` that the argument at `position` or `dim` names; all if none is given."""
    given = op.args[position] if len(op.args) > position else op.kwargs.get("dim")
    rank = len(value.shape)
    if given is None or given == []:
        return list(range(rank))
    return sorted({d % max(1, rank) for d in ([given] if isinstance(given, int) else given)})


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 160 characters."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def _constants(arguments: Any) -> Any:
    """Return arguments with tensors in place of constant Values; None if one depends on the input."""
    if isinstance(arguments, Value):
        return arguments.constant
    if isinstance(arguments, (tuple, list)):
        found = [_constants(argument) for argument in arguments]
        if any(new is None and old is not None for new, old in zip(found, arguments, strict=True)):
            return None
        return type(arguments)(found)
    return arguments


@dataclass(frozen=True)
class Recording:
    """The operations of a forward pass that depend on its input or on the model's tensors, and the Values it returned.

    `state` maps names to the model's tensors. `biases` names the biases, existing or not, that layers add; those in
    `fixed_biases` must not change. `attentions` are the paths of modules that cannot lose heads. The first `eval_count`
    operations ran in eval mode; the others in a second pass, which also runs the layers that only run in training.
    `problems` says why there is no second pass although some layers did not run. `branches` are the paths of modules
    whose forward asks for what decides its way, with the arguments it was called with and what it asks for.
    `in_objects` are the outputs that objects hold, as a cache does. `idle` are the paths of the layers that ran in no
    pass.
    """

    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]
    state: dict[str, Value] = field(default_factory=dict)
    biases: frozenset[str] = frozenset()
    attentions: tuple[str, ...] = ()
    fixed_biases: frozenset[str] = frozenset()
    eval_count: int = 0
    problems: tuple[str, ...] = ()
    branches: tuple[tuple[str, tuple[Value, ...], str], ...] = ()
    in_objects: frozenset[Value] = frozenset()
    idle: tuple[str, ...] = ()
    nonzero: dict[Value, Tensor] = field(default_factory=dict)  # of constants, filled on demand

    @cached_property
    def producers(self) -> dict[Value, Op]:
        """The operation that computed each constant of the pass."""
        made = ((value, op) for op in self.ops for value in op.results)
        return {value: op for value, op in made if value.constant is not None and not isinstance(value, Filled)}

    def nonzero_entries(self, value: Value) -> Tensor:
        """Return where a constant is nonzero, a compressed float32 form; computed once."""
        if value not in self.nonzero:
            assert value.constant is not None
            self.nonzero[value] = nonzero(value.constant).to(torch.float32)
        return self.nonzero[value]
