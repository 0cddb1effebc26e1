"""The cost of a model and the saving of each group of channels, in multiply-adds, parameters or milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...calls import Inputs, inputs_of, run
from ...surgery.channels.analyse import Channels
from ...surgery.mask_state.masks import masked_sources
from ..preserve_state import preserve_state

_TIMED_RUNS = 3


class Term(NamedTuple):
    """A term of the cost: `amount` times the kept share of each axis.

    `axes` hold the group of each index, int64, -1 = stays.
    """

    amount: float
    axes: tuple[Tensor, ...]


def multiply_adds(model: nn.Module, channels: Channels) -> list[Term]:
    """Return the multiply-adds of every operation."""
    return [Term(one.multiply_adds, _flat(one.axes)) for one in channels.operations]


def parameters(model: nn.Module, channels: Channels) -> list[Term]:
    """Return the entries of every parameter; one with several names counts once."""
    computed = masked_sources(model)
    return [
        Term(parameter.numel(), _flat(channels.labels.get(computed.get(name, name), {}).values()))
        for name, parameter in model.named_parameters()
    ]


def at_prices(channels: Channels, prices: Mapping[str, float]) -> list[Term]:
    """Return the cost of every operation from `prices` by operation name.

    Operations of one name share its price in proportion to their multiply-adds; one without a price costs nothing.
    """
    shared: dict[str, int] = {}
    for one in channels.operations:
        shared[one.name] = shared.get(one.name, 0) + one.multiply_adds
    return [
        Term(prices.get(one.name, 0.0) * one.multiply_adds / max(1, shared[one.name]), _flat(one.axes))
        for one in channels.operations
    ]


def _flat(axes: Any) -> tuple[Tensor, ...]:
    return tuple(axis.reshape(-1) for axis in axes)


# Cost in a recipe -> its terms. Milliseconds are measured: see `forward_milliseconds`.
COSTS: dict[str, Callable[[nn.Module, Channels], list[Term]]] = {"flops": multiply_adds, "parameters": parameters}


def total(terms: Sequence[Term], kept: Tensor) -> Fraction:
    """Return the cost with only the groups in `kept`, bool [groups]; exact for whole amounts."""
    with_rest = torch.cat([kept, kept.new_ones(1)])
    cost = Fraction(0)
    for amount, axes in terms:
        left = prod(int(with_rest[axis].count_nonzero()) for axis in axes)
        cost += Fraction(amount) * Fraction(left, max(1, prod(len(axis) for axis in axes)))
    return cost


def savings(terms: Sequence[Term], kept: Tensor) -> Tensor:
    """Return what removing each group saves while the others are as in `kept`, float64 [groups].

    Savings count in the layers that produce a channel and in those that read it.
    """
    saved = torch.zeros_like(kept, dtype=torch.float64)
    for amount, axes in terms:
        with_group = torch.full_like(saved, amount)
        without = with_group.clone()
        for axis in axes:
            sizes = torch.bincount(axis[axis >= 0], minlength=len(kept)).to(torch.float64)
            others = len(axis) - float(sizes[~kept].sum()) - sizes * kept
            with_group *= (others + sizes) / len(axis)
            without *= others / len(axis)
        saved += with_group - without
    return saved


def forward_milliseconds(model: nn.Module, names: Sequence[str], example_input: Any) -> dict[str, float]:
    """Return the milliseconds that a forward pass spends in each named module, named ones inside it excluded.

    The model runs in eval mode, once to warm up and then three times; the shortest time counts.
    """
    inputs = inputs_of(example_input, "criterion", model)
    with ExitStack() as hooks, preserve_state(model, [], training=False), torch.no_grad():
        clock = _Clock(model, set(names), hooks)
        run(model, inputs)
        runs = [clock.run(inputs) for _ in range(_TIMED_RUNS)]
    return {name: 1000 * min(run.get(name, 0.0) for run in runs) for name in dict.fromkeys(names)}


class _Clock:
    """Measures, by hooks, how long modules run, without the time of measured modules within them."""

    def __init__(self, model: nn.Module, names: set[str], hooks: ExitStack) -> None:
        self.model = model
        self.seconds: dict[str, float] = {}
        self.running: list[list[float]] = []  # start, seconds of measured modules within
        for name, module in model.named_modules():
            if name in names:
                hooks.enter_context(module.register_forward_pre_hook(lambda *_: self._enter()))
                hooks.enter_context(module.register_forward_hook(lambda *_, name=name: self._leave(name)))

    def run(self, inputs: Inputs) -> dict[str, float]:
        """Return the seconds of one forward pass, by name."""
        self.seconds, self.running = {}, []
        run(self.model, inputs)
        return self.seconds

    def _enter(self) -> None:
        self.running.append([self._now(), 0.0])

    def _leave(self, name: str) -> None:
        start, within = self.running.pop()
        elapsed = self._now() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - within
        if self.running:
            self.running[-1][1] += elapsed

    def _now(self) -> float:
        if next(self.model.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
