"""The pruner: applies criterion, granularity, scope and schedule to the masks of a model in training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import out_of_inference_mode, takes
from ..processes.ranks import group_of
from ..surgery.channels.analyse import Channels
from ..surgery.mask_state.masks import MaskedWeight, kept_of
from ..surgery.mask_state.new_ties import refuse_new_ties
from ..surgery.mask_state.sharding import reshard, shard_masks
from ..surgery.progress import Progress, ScheduleWarning, note_progress, warn_of_schedule
from ..surgery.rules.table import Rule
from ..surgery.unwrap import unwrap
from . import parts
from .build_report import losses_of, pruning_report
from .criteria.gradients import LossFunction, on_model_and_batch
from .criteria.table import Context
from .mask_update import set_all, union_of
from .report import PruningReport, SparsityWarning
from .same_masks import check_same
from .schedules import Update, update_plan
from .selection.prunable_weights import copy_to_aliases, weights_named
from .settings.prune import Pruning, parse_pruning
from .state import PrunerState, settings_text

__all__ = ["Pruner", "PruningReport", "ScheduleWarning", "SparsityWarning"]


class Pruner:
    """Updates the masks of a converted model, in place, while it trains.

    Call `start` before the first step and `step` after every optimiser step. `plan` lists every update in advance,
    `position` counts the steps done, `sparsity` is the sparsity due now. `on_cycle_end`, if set, is called with the
    number of each cycle at its end, while the model has that cycle's masks.

    - `pruning`: the prune section of a recipe, as settings or a dict.
    - `total_steps`, `steps_per_epoch`: optimiser steps; the latter only for times in epochs.
    - `generator`: random scores are seeded by one number drawn from it, by default by 0.
    - `example_input`: a tensor, a tuple of positional arguments, a dict of keyword arguments or `sparsify.Inputs`. With
      granularity unit it is used to find coupled channels, which are pruned together, biases and norms included;
      without it a unit is a row of one weight. Criteria such as synflow use its shape.
    - `channels`: a result of `analyse` instead of the example. `rules`, `examples`: further arguments for `analyse`.

    Weights that are masked before the start stay removed; a schedule without cycles then goes from the present
    sparsity, in each group of the scope, to the target, unless the target is lower.
    With torch.distributed, every process makes a pruner and makes the same calls: gradients are those of all batches
    together, and masks are compared after every update. `model` may be wrapped in DistributedDataParallel or sharded by
    fully_shard: masks are then sharded too, and settings that would not be exact are refused (docs/processes.md).
    """

    @takes(
        model=nn.Module,
        total_steps=Integral,
        steps_per_epoch=(Integral, NoneType),
        generator=(torch.Generator, NoneType),
        rules=(Mapping, NoneType),
        examples=(list, tuple),
    )
    def __init__(
        self,
        model: nn.Module,
        pruning: Pruning | Mapping[str, Any],
        total_steps: int,
        *,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
        example_input: Any = None,
        channels: Channels | None = None,
        rules: Mapping[str, Rule] | None = None,
        examples: Sequence[Any] = (),
    ) -> None:
        """Plan the pruning of a converted `model`; no mask is changed yet.

        Raises SparsifyError for wrong settings, times that do not fit, or a model without masks.
        """
        self.model, self._group = unwrap(model), group_of(model)
        model, shards = self.model, shard_masks(self.model)
        refuse_new_ties(model, "Pruner")
        self.pruning = parse_pruning(pruning)
        self.total_steps, self.steps_per_epoch = times = total_steps, steps_per_epoch
        self.plan: tuple[Update, ...] = tuple(update_plan(self.pruning, *times))
        self.parts = parts.make_parts(model, self.pruning, times, example_input, channels, rules, examples)
        if shards is not None:
            parts.check_shards(self.parts)
            self._group = shards
        self.names = tuple(name for part in self.parts for name in part.candidates.names)
        self.position = 0
        self._state = PrunerState(self.pruning.masked_weights, generator, self._group, parts.sums_of(self.parts))
        self._state.sums.watch(self._weights())
        self._ready = False  # `start` was called in this process
        self._batches: Iterable[Any] | None = None
        self._loss_fn: LossFunction | None = None
        self._example_input = example_input
        self._note_progress()
        self._watched = list(self._weights().values())
        self.on_cycle_end: Callable[[int], None] | None = None

    @property
    def sparsity(self) -> float:
        """The sparsity due now."""
        return self._state.sparsity

    @property
    def cycle(self) -> int:
        """The number of the present cycle, from 1; 0 before pruning begins."""
        return self.plan[self._state.done - 1].cycle if self._state.done else 0

    @property
    def finished(self) -> bool:
        """Whether the last update has happened: the masks do not change any more."""
        return self._state.done == len(self.plan)

    def start(self, batches: Iterable[Any] | None = None, loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Apply the updates due before the first step, and set the data that some criteria need.

        `batches` is iterated again at every update (an iterator is stored as a list). `loss_fn(outputs, targets)`
        returns the loss of a batch (inputs, targets), a tensor of one element; if its parameters are called `model` and
        `batch`, or if batches are not pairs, it is called with these. After `load_state_dict` only the data are set.
        Raises SparsifyError if the criterion needs data and there are none.
        """
        if not self.finished:
            batches, self._example_input = parts.with_data(self.parts, batches, loss_fn, self._example_input)
        self._batches = batches
        self._loss_fn = None if loss_fn is None else on_model_and_batch(loss_fn)
        self._ready = True
        state = self._state
        if not state.started:
            state.started = True
            kept, entries = kept_of(self._watched)
            state.removed_before = entries - kept
            state.sparsity = parts.removed(self.parts, self._weights()) if state.removed_before else 0.0
            if state.sparsity:  # a ramp to a higher sparsity begins at the present masks, and only adds to them
                state.union = parts.masks_to_keep(self.parts, self._weights())
            try:
                self._apply_due_updates()
            except BaseException:
                state.started = self._ready = False  # the next call tries again
                raise

    def check_present(self, *, where: str) -> None:
        """Raise SparsifyError, which begins with `where`, if the masks already remove more than the target."""
        parts.check_present(self.parts, self._weights(), where)

    def step(self) -> None:
        """Count one optimiser step and apply the updates due after it. Call it right after `optimizer.step()`.

        Exceptions of the criterion and the loss pass through; masks are then unchanged, and the next call tries again.
        """
        if not self._ready:
            self.start()
        for weight in self._watched:
            weight.mask  # noqa: B018 - raises if other code replaced the mask
        self.position += 1
        reshard(self.model)
        if self._state.sums.names:
            self._state.sums.next_step(self._weights())
        self._note_progress()
        if self.pruning.masked_weights != "decay":
            self._state.removed_values.restore(self._weights().values())
        if self._is_due():
            self._apply_due_updates()

    def report(self) -> PruningReport:
        """Return the sparsity reached by the present masks, layer by layer, and the one requested.

        Warns (ScheduleWarning) if updates are still due, and after more steps than were planned.
        """
        warn_of_schedule(self.model, stacklevel=2, weights=self.names)
        self._weights()  # raises if a weight no longer has its mask
        return pruning_report(self.model, self.pruning, self.parts, self._state.removed_before)

    def _note_progress(self) -> None:
        last = self.plan[-1].step if self.plan else 0
        progress = Progress(self.position, self.total_steps, last, self._state.done, len(self.plan))
        note_progress(self.model, self.names, progress)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` continues to the same bits; masks are in the model's state.

        A flat dict of integers, floats, bools, strings and tensors, all copies.
        """
        return self._state.as_dict(self._own_entries())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a pruner with the same settings and model, whose own state is loaded separately.

        Raises SparsifyError, with nothing changed, for other settings or another model.
        """
        found = self._state.load(state, self._own_entries(), self._weights())
        if "prices" in found:
            self.parts = parts.at_prices(self.parts, found["prices"].cpu())
        self.position, self._ready = found["position"], False
        self._note_progress()

    def _own_entries(self) -> dict[str, Any]:
        settings = settings_text(self.pruning, self.total_steps, self.steps_per_epoch, self.names)
        return {"settings": settings, "position": self.position, **parts.measured_prices(self.parts)}

    def _weights(self) -> dict[str, MaskedWeight]:
        # Looked up each time: `.to(device)` and some ways of loading replace the masks.
        return weights_named(self.model, self.names)

    def _is_due(self) -> bool:
        return not self.finished and self.plan[self._state.done].step <= self.position

    def _apply_due_updates(self) -> None:
        weights = self._weights()
        with out_of_inference_mode(self.model), torch.no_grad(), self._state.all_or_nothing(weights):
            while self._is_due():
                update = self.plan[self._state.done]
                self._apply(update, weights)
                copy_to_aliases(self.model)
                self._state.done += 1
                check_same(weights, self.position, self._state.done, self._group)
                self._note_progress()
                if self.on_cycle_end is not None and self.pruning.schedule.cyclical and update.progress == 1:
                    self.on_cycle_end(update.cycle)
        self._state.removed_values.snapshot(weights.values())
        if self.finished:
            self._batches = self._loss_fn = None
            self._state.sums.close()
            for line in losses_of(self.model, self.parts):
                warnings.warn(line, SparsityWarning, stacklevel=3)

    def _apply(self, update: Update, weights: Mapping[str, MaskedWeight]) -> None:
        masks = {name: weight.mask for name, weight in weights.items()}
        if update.event in ("reset", "union"):
            set_all(masks, self._state.union if update.event == "union" else None)
            self._state.sparsity = parts.removed(self.parts, weights) if update.event == "union" else 0.0
        else:
            generator = self._state.random.rewound(update.cycle)
            data = {"batches": self._batches, "loss_fn": self._loss_fn, "example_input": self._example_input}
            sums = self._state.sums.values
            context = Context(self.model, masks, self.position, generator, **data, step_sums=sums, group=self._group)
            self._state.sparsity = parts.update_parts(self.parts, self._state.done, weights, context, self._state.union)
        if update.event == "save":
            self._state.union = union_of(self._state.union, masks)
