"""The steps of a recorded pass: what the analyses of channels work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .axes import moves, nonzero
from .foldable import Foldable, foldable_steps
from .recording import leaves

STALE = "stale"
SCALED_BY_SIZE = "scaled_by_size"


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass: its shape, what it holds if no input changes that, its names in the model."""

    shape: tuple[int, ...]
    constant: Tensor | None = None
    names: tuple[str, ...] = ()
    trainable: bool = False  # a parameter of the model


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: its name without overload ("convolution"), its arguments with Values for tensors, its results."""

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value, ...]
    module: str

    @cached_property
    def inputs(self) -> list[Value]:
        """The Values among the arguments, in order."""
        return leaves((self.args, self.kwargs), Value)

    @cached_property
    def moves(self) -> bool:
        """Whether it only moves the entries of its first argument."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Value) or not self.results:
            return False
        return moves(self.name, first.shape, self.results[0].shape, self.args)

    @cached_property
    def rest(self) -> Any:
        """The arguments after the first, with tensors in place of constants; None if one depends on the input."""
        return _constants(self.args[1:])


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
class Tape:
    """All steps of a pass that depend on its input or on the model's tensors, and the Values that it returned.

    `state` has the model's tensors by name, `biases` the names of biases, there or not, that layers add; those in
    `held_biases` are not to be changed. `attentions` are the paths of modules that cannot lose heads. The first
    `evaluated` steps are of the pass in eval mode; the others are of one in which what only runs in training ran too.
    `problems` says why there is none of those although some layers did not run.
    """

    steps: tuple[Step, ...]
    outputs: tuple[Value, ...]
    state: dict[str, Value] = field(default_factory=dict)
    biases: frozenset[str] = frozenset()
    attentions: tuple[str, ...] = ()
    held_biases: frozenset[str] = frozenset()
    evaluated: int = 0
    problems: tuple[str, ...] = ()
    nonzero: dict[Value, Tensor] = field(default_factory=dict)  # of constants, filled by what asks for it

    @cached_property
    def made(self) -> dict[Value, Step]:
        """The step that made each constant that the pass computed."""
        return {value: step for step in self.steps for value in step.results if value.constant is not None}

    @cached_property
    def foldable(self) -> dict[Step, Foldable]:
        """What constant channels may be folded into."""
        return foldable_steps(self)

    def nonzero_entries(self, value: Value) -> Tensor:
        """Return where a constant is not zero, as a float32 form, as short as it can be; made once."""
        if value not in self.nonzero:
            assert value.constant is not None
            self.nonzero[value] = nonzero(value.constant).to(torch.float32)
        return self.nonzero[value]
