"""Sums over the steps of a training, from the gradients that an optimiser uses, read right before each of its steps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...errors import SparsifyError
from ...processes.shards import is_sharded
from ...surgery.mask_state.masks import MaskedWeight
from .gradients import differs_from_parameter, zeros_like


class StepSums:
    """-(w * dL/dw) of some weights, summed over the steps of their optimisers while `watch` is on.

    Gradient and weight are those that the optimiser uses: of all batches and processes of the step, unscaled and
    clipped if the training does so. `values` is empty before the first step, then float32 or wider by weight name. A
    second call before `next_step` is ignored: optimisers that wrap another one call twice.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.values: dict[str, Tensor] = {}
        self._weights: Mapping[str, MaskedWeight] = {}
        self._added: set[str] = set()
        self._stop: weakref.finalize[[], StepSums] | None = None

    def watch(self, weights: Mapping[str, MaskedWeight]) -> None:
        """Sum from the next optimiser step on, until `close` or until this object is deleted.

        Raises SparsifyError for weights that a module computes from their parameter: the parameter's gradient differs.
        """
        self._weights = {name: weight for name, weight in weights.items() if name in self.names}
        whole = {name: weight for name, weight in self._weights.items() if not is_sharded(weight.parameter)}
        computed = [name for name, weight in whole.items() if differs_from_parameter(weight)]
        if computed:
            raise SparsifyError(
                f"criterion 'movement' sums what the optimiser sees, and {computed[0]} is computed by its module from "
                "other numbers; take another criterion for it, by 'rules', or 'ignore' it"
            )
        if self._stop is None and self._weights:
            own = weakref.ref(self)

            def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                sums = own()
                if sums is not None:
                    sums._add(optimizer)

            self._stop = weakref.finalize(self, register_optimizer_step_pre_hook(before_step).remove)

    def next_step(self, weights: Mapping[str, MaskedWeight]) -> None:
        """End a step; `weights` are those of the next one."""
        self._added.clear()
        if self._weights:
            self._weights = {name: weight for name, weight in weights.items() if name in self.names}

    def close(self) -> None:
        """Stop summing."""
        if self._stop is not None:
            self._stop()
        self._stop, self._weights = None, {}

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, weight in self._weights.items():
            parameter = weight.parameter
            if name not in self._added and id(parameter) in held and parameter.grad is not None:
                self._added.add(name)
                if not self.values:
                    self.values = zeros_like(self._weights)
                total = self.values[name]
                total.addcmul_(parameter.to(total.dtype), parameter.grad.to(total.dtype), value=-1)
