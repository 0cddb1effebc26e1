"""Liveness: which entries of every activation may be nonzero and can reach an output (dead-code analysis).

The analysis propagates one *flag* per entry through the recording, 1 where the entry may be nonzero for some input. As
in SynFlow (Tanaka et al. 2020), a positive linear operation replaces every operation; its results are clipped to 0 or
1. The gradient of the outputs with respect to a flag is then positive exactly where the entry can reach an output.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..recording import broadcast_forms as forms
from ..recording.ops import Op, Recording, Value, described
from .bias_sinks import BiasSink
from .constants import propagate

Flow: TypeAlias = "Callable[[Liveness, Op], None]"


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Compute in float32 on the CPU, outside of dispatch modes and autocast, whatever the defaults and modes are."""
    before = torch.get_default_dtype()
    on_cpu = torch.empty(0).device.type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False), _disable_current_modes():
            with nullcontext() if on_cpu else torch.device("cpu"):  # a mode, which every operation pays for
                yield
    finally:
        torch.set_default_dtype(before)


class _Indicator(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient.dtype)


def indicator(x: Tensor) -> Tensor:
    """Return flags: 1 where `x` is positive, else 0, with the dtype and shape of `x`.

    In the backward pass the gradient is clipped to 0 or 1 in the same way (straight-through).
    """
    flags: Tensor = _Indicator.apply(x)
    return flags


def _merged(flags: Tensor, but: Container[int]) -> Tensor:
    """Return flags with size 1 along the dimensions, `but` some, in which they are equal: copies left by a view.

    A view of heads as (batch * heads) and back leaves a copy for each sample.
    """
    equal = [
        d for d, size in enumerate(flags.shape) if size > 1 and d not in but and (flags == flags.narrow(d, 0, 1)).all()
    ]
    return indicator(flags.sum(equal, keepdim=True)) if equal else flags


class Liveness:
    """The flags of every Value of a recording, under `masks` on the model's tensors (bool by first name, True = keep).

    `rule` returns the transfer function of an operation, None for a movement or a barrier. `sinks` are the operations
    that can absorb constants into a bias. `channel_dims` are the dimensions along which channels may go (None = all).
    With `learning`, unmasked entries of parameters count as nonzero whatever their current values. `failures` maps
    operations whose rule raised to the error; such an operation is a barrier.
    """

    def __init__(
        self,
        recording: Recording,
        rule: Callable[[Op], Flow | None],
        sinks: Mapping[Op, BiasSink],
        masks: Mapping[str, Tensor] | None = None,
        *,
        learning: bool = False,
        channel_dims: Mapping[Value, Container[int]] | None = None,
    ) -> None:
        self.recording = recording
        self._channel_dims = channel_dims
        self._rule = rule
        self.masks = masks or {}
        self.learning = learning
        self.as_stored = not self.masks and not learning
        self.depends_on_learnt: set[Value] = set()  # known values use a learnt scalar that all channels share
        self.flags: dict[Value, Tensor] = {}
        self.roots: list[Tensor] = []
        self.known_values: dict[Value, Tensor] = {}  # float64 forms, see constants.py
        self.failures: dict[Op, str] = {}
        self.bias_sinks = sinks
        self.constant_channels: dict[Op, Tensor] = {}  # bias sink -> bool [channels]: its constant input channels
        with torch.enable_grad():
            for op in recording.ops:
                self.visit(op)
            self.roots += [self.of(value) for value in recording.outputs]
            total = sum((flag.sum() for flag in self.roots), torch.zeros(()))
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]

    def of(self, value: Value) -> Tensor:
        """Return a Value's flags, a float32 form with the full size of every dimension that may hold channels."""
        flags = self.compressed(value)
        return flags if value.constant is None else flags.expand(self.full_sizes(value))

    def full_sizes(self, value: Value) -> list[int]:
        """Return the sizes to which `of` expands a form, -1 for a dimension that stays as it is.

        A constant is not expanded along the batch or positions, which would make all that is combined with it as long.
        """
        if value.constant is None:
            return [-1] * len(value.shape)
        if self._channel_dims is None or (value.names and value.shape[:1] != (1,)):  # weights are full, tables are not
            return list(value.shape)
        dims = self._channel_dims.get(value, ())
        return [size if d in dims else -1 for d, size in enumerate(value.shape)]

    def compressed(self, value: Value) -> Tensor:
        """Return a Value's flags, a float32 form; that of a constant is compressed."""
        if value not in self.flags:
            if value.constant is None:
                # No rule has set it: alive if something reads it.
                flags = torch.ones([1] * len(value.shape), requires_grad=True)
            else:
                may_be_anything = self.learning and value.trainable
                flags = torch.ones([1] * len(value.shape)) if may_be_anything else self.recording.nonzero_entries(value)
                kept = self.masks.get(value.names[0]) if value.names else None
                flags = flags if kept is None else flags * kept
            self.flags[value] = flags
        return self.flags[value]

    def constant(self, value: Value) -> Tensor:
        """Return the values of a constant, with zeros where its mask removes entries."""
        assert value.constant is not None
        kept = self.masks.get(value.names[0]) if value.names else None
        return value.constant if kept is None else torch.where(kept, value.constant, 0)

    def set(self, value: Value, flags: Tensor) -> None:
        """Set a Value's flags, a form that is positive where an entry may be nonzero."""
        if value.constant is not None and value.constant.dtype.is_floating_point and self.as_stored:
            flags = self.recording.nonzero_entries(value)
        if value.constant is None:
            flags = flags if flags.requires_grad else flags.detach().clone().requires_grad_()
            flags.retain_grad()
        self.flags[value] = flags

    def visit(self, op: Op) -> None:
        """Set the flags of one operation's results; if its rule raises, make it a barrier and note the failure."""
        try:
            self._apply_rule(op)
            propagate(self, op)
        except Exception as error:  # noqa: BLE001 - a rule, perhaps a user's, failed on unexpected arguments
            self.failures[op] = described(error)
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
        """Treat all inputs of an operation as read and all its results as nonzero."""
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
                continue
            if form.dim() > flags.dim() and self._channel_dims is not None:
                form = _merged(form, self._channel_dims.get(result, ()))
            # A separate tensor, so that its gradient comes only from this Value's readers.
            self.set(result, form.clone() if form is flags else form)

    def alive(self, value: Value) -> np.ndarray[Any, Any]:
        """Return a bool form of a Value's live entries, which may be nonzero and can reach an output."""
        flags = self.flags[value]
        if flags.grad is None:
            return np.zeros(flags.shape, dtype=bool)
        found: np.ndarray[Any, Any] = (flags.detach() * flags.grad).numpy() > 0
        return found
