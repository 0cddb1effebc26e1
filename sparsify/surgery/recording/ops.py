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
# What a forward may branch on.
VALUES = "what activations hold"
GRADIENTS = "whether gradients are on"
SCALED_BY_SIZE = "scaled_by_size"
# Operations through which Python code reads the values of a tensor.
DATA_DEPENDENT = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "allclose", "tolist", "numpy"})
_POINTWISE_TOO = "copy fill masked_fill _prelu_kernel where hardswish hardsigmoid mish log_sigmoid leaky_relu".split()
# Operations that fill a tensor of explicit sizes with one number.
FILLS = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like")  # that fill a tensor of another's sizes


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass.

    `constant` holds its values if no input affects them; `names` are its names in the model, () for an activation.
    """

    shape: tuple[int, ...]
    constant: Tensor | None = None
    names: tuple[str, ...] = ()
    trainable: bool = False  # a parameter of the model


@dataclass(eq=False)
class Derived(Value):
    """A constant computed from the model's tensors."""


def from_model(value: Value) -> bool:
    """Return whether a constant is one of the model's tensors or is computed from them."""
    return bool(value.names) or isinstance(value, Derived)


@dataclass(eq=False)
class Filled(Value):
    """A constant of explicit sizes filled with one number, such as the result of torch.zeros."""


@dataclass(eq=False)
class Noise(Filled):
    """Random numbers of explicit sizes, as in feature dropout; `constant` holds ones, since any may be nonzero."""


@dataclass(frozen=True, eq=False)
class Op:
    """One operation of the pass.

    `name` is its name without overload ("convolution"), `overload` is torch's OpOverload (None if it is not an
    operation of the dispatcher), `args` and `kwargs` are its arguments with Values for tensors, `module` is the path of
    the module that ran it.
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
        """Whether it is a movement: its results are entries of its first argument, rearranged."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Value) or not self.results:
            return False
        if self.name in ("index", "index_select") and self.constant_args is None:
            return False  # the places depend on the input
        return is_movement(self.name, first.shape, self.results[0].shape, self.args)

    def argument(self, name: str) -> Any:
        """Return the argument `name` of the operation's schema, or its default; None if there is no such argument."""
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
    """Return the tensors that a cat or stack joins, without the empty vectors that cat ignores."""
    return [value for value in op.args[0] if op.name == "stack" or value.shape != (0,)]


def pointwise(op: Op) -> bool:
    """Return whether an operation is element-wise, with broadcast operands and one result."""
    return len(op.results) == 1 and op.overload is not None and _is_pointwise(op.name, op.overload)


@cache
def _is_pointwise(name: str, overload: Any) -> bool:
    functional = getattr(torch.ops.aten, name.rstrip("_"), None)  # in-place overloads lack the tag
    if name.endswith("_") and functional is not None:
        overloads = [getattr(functional, one) for one in functional.overloads()]
    else:
        overloads = [overload]
    return any(torch.Tag.pointwise in o.tags for o in overloads) or name.rstrip("_") in _POINTWISE_TOO


def dims_of(op: Op, value: Value, position: int = 1) -> list[int]:
    """Return the dimensions of `value` named by the argument at `position` or by `dim`; all if neither is given."""
    given = op.args[position] if len(op.args) > position else op.kwargs.get("dim")
    rank = len(value.shape)
    if given is None or given == []:
        return list(range(rank))
    return sorted({d % max(1, rank) for d in ([given] if isinstance(given, int) else given)})


def fills_new_memory(op: Op) -> bool:
    """Return whether an operation copies to a tensor that is neither of the model nor made with explicit sizes."""
    target = op.inputs[0]
    return op.name == "copy_" and type(target) is Value and target.constant is not None and not target.names


def described(error: Exception) -> str:
    """Return an error's type and the first line of its message, of which at most 160 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _constants(arguments: Any) -> Any:
    """Return the arguments with tensors in place of constant Values; None if one depends on the input."""
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

    `state` maps names to the model's tensors. `biases` names the biases, present or not, that layers can add; those in
    `fixed_biases` must not change. `attentions` are the paths of modules that cannot lose heads. The first `eval_count`
    operations ran in eval mode, the others in further passes, which also run layers that only run in training.
    `problems` says why there is no such pass although some layers did not run. `branches` holds, for each module whose
    forward branches on activations or on the gradient mode, its path, the Values of its arguments and what it branches
    on. `in_objects` are outputs that objects (a cache) hold. `idle` are the paths of layers that no pass ran.
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
        """Return where a constant is nonzero, as a compressed float32 form (cached)."""
        if value not in self.nonzero:
            assert value.constant is not None
            self.nonzero[value] = nonzero(value.constant).to(torch.float32)
        return self.nonzero[value]
