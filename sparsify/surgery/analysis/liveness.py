"""Which entries of every activation can matter: those that may be nonzero and are read by something that matters.

A pass over the recorded operations carries one *flag* per entry, 1 where the entry may be nonzero for some input, as the
SynFlow trick does (Tanaka et al. 2020): every operation is replaced by a positive linear one, after which flags are 0
or 1 again. The gradient of the outputs for these flags is then positive exactly where an entry can reach an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..recording import broadcast_forms as forms
from ..recording.ops import Op, Recording, Value, first_line
from .bias_sinks import BiasSink
from .constants import propagate

Flow: TypeAlias = "Callable[[Liveness, Op], None]"


class _Indicator(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient.dtype)


def indicator(x: Tensor) -> Tensor:
    """Return flags: 1 where `x` is positive; whoever reads the result reads all that `x` is made of."""
    flags: Tensor = _Indicator.apply(x)
    return flags


class Liveness:
    """The flags of every Value of a pass; `kept` masks entries of the model's tensors, by their first name.

    `rule` returns what enters an operation, None for one that only moves entries or is a barrier; `sinks` are the operations
    that can take constant channels into a bias. With `learning` the other entries of parameters may come to hold
    anything, whatever they hold now.
    """

    def __init__(
        self,
        recording: Recording,
        rule: Callable[[Op], Flow | None],
        sinks: Mapping[Op, BiasSink],
        masks: Mapping[str, Tensor] | None = None,
        *,
        learning: bool = False,
    ) -> None:
        self.recording = recording
        self._rule = rule
        self.masks = masks or {}
        self.learning = learning
        self.as_stored = not self.masks and not learning
        self.depends_on_learnt: set[Value] = set()  # of which `held` rests on what is learnt and shared by all channels
        self.flags: dict[Value, Tensor] = {}
        self.roots: list[Tensor] = []
        self.known_values: dict[Value, Tensor] = {}  # what entries hold whatever the input, see constants.py
        self.failures: dict[Op, str] = {}
        self.bias_sinks = sinks
        self.constant_channels: dict[
            Op, Tensor
        ] = {}  # of foldable operations: which channels that enter are constant, not zero
        with torch.enable_grad():
            for op in recording.ops:
                self.visit(op)
            self.roots += [self.of(value) for value in recording.outputs]
            total = sum((flag.sum() for flag in self.roots), torch.zeros(()))
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]

    def of(self, value: Value) -> Tensor:
        """Return a Value's flags, a form of it that has its full size wherever a channel may lie."""
        flags = self.compressed(value)
        if value.constant is None:
            return flags
        # Of a table of positions, whatever it is added to would be as long from there on.
        positions = 1 if len(value.shape) == 3 and value.shape[0] == 1 else None
        return flags.expand([-1 if d == positions else size for d, size in enumerate(value.shape)])

    def compressed(self, value: Value) -> Tensor:
        """Return a Value's flags; those of a constant, a form as short as it can be."""
        if value not in self.flags:
            if value.constant is None:
                flags = torch.ones([1] * len(value.shape))
            else:
                may_be_anything = self.learning and value.trainable
                flags = torch.ones([1] * len(value.shape)) if may_be_anything else self.recording.nonzero_entries(value)
                kept = self.masks.get(value.names[0]) if value.names else None
                flags = flags if kept is None else flags * kept
            self.flags[value] = flags
        return self.flags[value]

    def constant(self, value: Value) -> Tensor:
        """Return what a constant holds, under the masks in `kept`."""
        assert value.constant is not None
        kept = self.masks.get(value.names[0]) if value.names else None
        return value.constant if kept is None else torch.where(kept, value.constant, 0)

    def set(self, value: Value, flags: Tensor) -> None:
        """Give a Value its flags."""
        if value.constant is not None and value.constant.dtype.is_floating_point and self.as_stored:
            flags = self.recording.nonzero_entries(value)
        if value.constant is None:
            flags = flags if flags.requires_grad else flags.detach().clone().requires_grad_()
            flags.retain_grad()
        self.flags[value] = flags

    def visit(self, op: Op) -> None:
        """Enter the flags of one operation's results; where that fails everything matters, and `failures` says why."""
        try:
            self._apply_rule(op)
            propagate(self, op)
        except Exception as error:  # noqa: BLE001 - a rule, also a user's, met arguments that it does not know
            self.failures[op] = f"{type(error).__name__}: {first_line(error)}"
            self.barrier(op)

    def _apply_rule(self, op: Op) -> None:
        flow = self._rule(op)
        if flow is not None:
            flow(self, op)
        elif op.is_movement and op.constant_args is not None:
            self._move(op)
        else:
            self.barrier(op)

    def barrier(self, op: Op) -> None:
        """Everything that goes in matters, everything that comes out may be nonzero."""
        total = sum((self.of(value).sum() for value in op.inputs), torch.zeros(()))
        if not op.results:
            self.roots.append(total)
        for value in op.results:
            self.set(value, indicator(total + 1).expand([1] * len(value.shape)).clone())

    def _move(self, op: Op) -> None:
        value, rest = op.args[0], op.constant_args
        flags = self.compressed(value)
        if op.name in forms.SPLITS:
            moved = forms.split(op.name, flags, value.shape, rest, op.overload, len(op.results))
        else:
            shape = op.results[0].shape
            moved = [forms.MOVEMENTS[op.name](flags, value.shape, shape, rest, op.overload).to(torch.float32)]
        for result, form in zip(op.results, moved, strict=True):
            if result.constant is not None:
                self.flags[result] = form
            else:  # a tensor of its own: the gradient of each is that of what reads this Value
                self.set(result, form.clone() if form is flags else form)

    def alive(self, value: Value) -> np.ndarray[Any, Any]:
        """Return a bool form of a Value: True where an entry may be nonzero and is read."""
        flags = self.flags[value]
        if flags.grad is None:
            return np.zeros(flags.shape, dtype=bool)
        found: np.ndarray[Any, Any] = (flags.detach() * flags.grad).numpy() > 0
        return found
