"""The operations of a recorded pass: what the analyses of channels work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .broadcast_forms import is_movement, nonzero
from .context import leaves

STALE = "stale"
SCALED_BY_SIZE = "scaled_by_size"
# What makes a tensor of one number in the sizes that it is given.
# Operations by which Python code learns what a tensor holds.
DATA_DEPENDENT = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "allclose", "tolist", "numpy"})
_POINTWISE_TOO = "copy fill masked_fill _prelu_kernel where hardswish hardsigmoid mish log_sigmoid".split()
FILLS = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass: its shape, what it holds if no input changes that, its names in the model."""

    shape: tuple[int, ...]
    constant: Tensor | None = None
    names: tuple[str, ...] = ()
    trainable: bool = False  # a parameter of the model


@dataclass(eq=False)
class Filled(Value):
    """A constant of one number whose sizes were given as numbers, as torch.zeros makes it."""


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: its name without overload ("convolution"), its arguments with Values for tensors, its results."""

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
        """Whether it only moves the entries of its first argument."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Value) or not self.results:
            return False
        if self.name in ("index", "index_select") and self.constant_args is None:
            return False  # as the input says, in one dimension of several
        return is_movement(self.name, first.shape, self.results[0].shape, self.args)

    def argument(self, name: str) -> Any:
        """Return the argument that the operation's schema calls `name`; its default, or None, if it was not given."""
        for i, argument in enumerate(self.overload._schema.arguments):
            if argument.name == name:
                given = self.args[i] if i < len(self.args) else argument.default_value
                return self.kwargs.get(name, given)
        return None

    @cached_property
    def constant_args(self) -> Any:
        """The arguments after the first, with tensors in place of constants; None if one depends on the input."""
        return _constants(self.args[1:])


def concat_inputs(op: Op) -> list[Value]:
    """Return what a cat or a stack joins: cat passes over empty vectors, whatever the others are."""
    return [value for value in op.args[0] if op.name == "stack" or value.shape != (0,)]


def pointwise(op: Op) -> bool:
    """Whether an operation has one result and works entry by entry, its operands broadcast."""
    if len(op.results) != 1 or op.overload is None:
        return False
    functional = getattr(torch.ops.aten, op.name.rstrip("_"), None)  # the tag is not set on those in place
    if op.name.endswith("_") and functional is not None:
        overloads = [getattr(functional, name) for name in functional.overloads()]
    else:
        overloads = [op.overload]
    return any(torch.Tag.pointwise in o.tags for o in overloads) or op.name.rstrip("_") in _POINTWISE_TOO


def dims_of(op: Op, value: Value, position: int = 1) -> list[int]:
    """Return the dimensions that an operation names in its arguments; all of them if it names none."""
    given = op.args[position] if len(op.args) > position else op.kwargs.get("dim")
    rank = len(value.shape)
    if given is None or given == []:
        return list(range(rank))
    return sorted({d % max(1, rank) for d in ([given] if isinstance(given, int) else given)})


def first_line(error: Exception) -> str:
    """Return the beginning of what an error says."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def _constants(arguments: Any) -> Any:
    """Return arguments with the tensors that Values stand for, None if one of them depends on the input."""
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
    """All operations of a pass that depend on its input or on the model's tensors, and the Values that it returned.

    `state` has the model's tensors by name, `biases` the names of biases, there or not, that layers add; those in
    `fixed_biases` are not to be changed. `attentions` are the paths of modules that cannot lose heads. The first
    `eval_count` operations are of the pass in eval mode; the others are of one in which what only runs in training ran too.
    `problems` says why there is none of those although some layers did not run.
    `branches` are the paths of modules whose forward asked what activations hold, with the arguments it was given.
    """

    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]
    state: dict[str, Value] = field(default_factory=dict)
    biases: frozenset[str] = frozenset()
    attentions: tuple[str, ...] = ()
    fixed_biases: frozenset[str] = frozenset()
    eval_count: int = 0
    problems: tuple[str, ...] = ()
    branches: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    nonzero: dict[Value, Tensor] = field(default_factory=dict)  # of constants, filled by what asks for it

    @cached_property
    def producers(self) -> dict[Value, Op]:
        """The operation that made each constant that the pass computed."""
        made = ((value, op) for op in self.ops for value in op.results)
        return {value: op for value, op in made if value.constant is not None and not isinstance(value, Filled)}

    def nonzero_entries(self, value: Value) -> Tensor:
        """Return where a constant is not zero, as a float32 form, as short as it can be; made once."""
        if value not in self.nonzero:
            assert value.constant is not None
            self.nonzero[value] = nonzero(value.constant).to(torch.float32)
        return self.nonzero[value]
