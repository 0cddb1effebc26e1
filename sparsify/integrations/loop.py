"""LoopPruning: pruning for a training loop, in four calls; the callbacks for trainers are built on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import takes
from ..errors import SparsifyError
from ..processes.shards import local
from ..pruning.pruner import Pruner
from ..pruning.report import SparsityWarning
from ..pruning.settings.prune import Pruning, parse_pruning
from ..surgery.conversion.convert import convert
from ..surgery.mask_state.masks import MaskedWeight, all_masked_parameters, is_computed, kept_of, masked_weights
from ..surgery.progress import warn_of_schedule
from ..surgery.unwrap import unwrap
from .carried_state import CarriedState


class LoopPruning:
    """Prunes a model while a loop trains it; the loop's own checkpoints carry the masks and the pruner's state.

    Create it before averages of the model and before its checkpoint is loaded; a plain model is converted (what
    `pruning` ignores stays dense), a masked one is used unchanged. Then call `begin` before the first step, `step`
    after every optimiser step, and `finish` at the end. `pruning` is a recipe's prune section, as settings or a dict;
    `example_input`, `batches` and `loss_fn` are those of `sparsify.Pruner`; `seed` seeds its random numbers.
    `model.state_dict()` has one entry more until `finish`: where it is loaded into the model before `begin`, the
    pruning continues from there. With `carry=False` the caller passes the `state` to `begin` instead.
    """

    @takes(model=nn.Module, pruning=(Pruning, Mapping), seed=Integral, carry=bool)
    def __init__(
        self,
        model: nn.Module,
        pruning: Pruning | Mapping[str, Any],
        *,
        example_input: Any = None,
        batches: Iterable[Any] | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        seed: int = 0,
        carry: bool = True,
    ) -> None:
        """Convert `model`, in place, unless it carries masks. Raises SparsifyError for settings that do not fit."""
        self.model, self.pruning = unwrap(model), check_pruning(pruning)
        if next(all_masked_parameters(self.model), None) is None:
            convert(self.model, ignore=self.pruning.ignore, only=self.pruning.only or ())
        self.pruner: Pruner | None = None
        self._given = {"example_input": example_input, "batches": batches, "loss_fn": loss_fn, "seed": seed}
        self._carried = CarriedState(self.model) if carry else None
        self._removed_at_end: int | None = None  # entries, by the last update
        self.ended = False
        self._metrics: dict[str, float] | None = None

    @takes(total_steps=Integral, steps_per_epoch=(Integral, NoneType), step=(Integral, NoneType))
    def begin(
        self,
        total_steps: int,
        steps_per_epoch: int | None = None,
        *,
        step: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Plan the pruning over `total_steps` optimiser steps and make the updates due before the first.

        After `step` steps (None: the number in the loaded state, if one was loaded) it continues from the
        state. Raises SparsifyError if there is none, or it is of other settings or another step, and after `finish`.
        """
        if self.ended:
            raise SparsifyError("pruning: it has ended; make a new LoopPruning of the model to prune further")
        saved = state if self._carried is None else self._carried.loaded
        given = self._given
        self.pruner = pruner = Pruner(
            self.model,
            self.pruning,
            total_steps,
            steps_per_epoch=steps_per_epoch,
            generator=torch.Generator().manual_seed(given["seed"]),
            example_input=given["example_input"],
        )
        if step != 0 and saved is not None:
            pruner.load_state_dict(saved)
        elif step:
            raise SparsifyError(
                f"pruning: training goes on after step {step}, and no pruner's state came with the checkpoint: it was "
                "written without pruning or after its end, or loaded before the pruning was set up"
            )
        else:
            pruner.check_present(where="pruning")
        if step is not None and pruner.position != step:
            raise SparsifyError(f"pruning: the pruner's state is of step {pruner.position}, the training's of {step}")
        pruner.start(given["batches"], given["loss_fn"])
        if self._carried is not None:
            self._carried.state = pruner.state_dict
        self._updated()

    def step(self) -> None:
        """Count one optimiser step, a skipped one too, and make the updates due after it."""
        pruner = self.began()
        pruner.step()
        if any(update.step == pruner.position for update in pruner.plan):
            self._updated()

    def finish(self) -> None:
        """End the pruning: the values under the masks become zero, so that plain weights saved later hold zeros.

        Weights from which the forward computes others (weight standardisation) keep their values. Gives a
        ScheduleWarning if updates were still due, and a SparsityWarning if the model has since lost masks, as when an
        earlier checkpoint was loaded.
        """
        self.began()
        warn_of_schedule(self.model, stacklevel=2)
        if self._removed_at_end is not None and (now := _removed(self.model)) < self._removed_at_end:
            warnings.warn(
                f"the model's masks remove {now:,} entries, those of its pruning's end {self._removed_at_end:,}: "
                "the weights of an earlier checkpoint were loaded",
                SparsityWarning,
                stacklevel=2,
            )
        with torch.no_grad():
            for weight in all_masked_parameters(self.model):
                if not is_computed(weight):
                    local(weight.parameter).masked_fill_(~local(weight.mask), 0)
        if self._carried is not None:
            self._carried.remove()
        self.ended = True

    def metrics(self, *, per_layer: bool = False) -> dict[str, float]:
        """Return the fraction removed of all masked weights as "sparsity", of each as "sparsity/<its name>"."""
        if self._metrics is None:
            weights = masked_weights(self.model)
            self._metrics = {"sparsity": _removed_share(weights.values())}
            self._metrics |= {f"sparsity/{name}": _removed_share([weight]) for name, weight in weights.items()}
        return dict(self._metrics) if per_layer else {"sparsity": self._metrics["sparsity"]}

    def began(self) -> Pruner:
        """Return the pruner. Raises SparsifyError before `begin`."""
        if self.pruner is None:
            raise SparsifyError("pruning: call begin(total_steps) before the first step")
        return self.pruner

    def _updated(self) -> None:
        """Record what the masks remove after the last update."""
        self._metrics = None
        if self.began().finished:
            self._removed_at_end = _removed(self.model)


def check_pruning(pruning: Pruning | Mapping[str, Any]) -> Pruning:
    """Return `pruning` as settings. Raises SparsifyError for a pruning that only `sparsify train` can do."""
    settings = parse_pruning(pruning)
    if settings.shrink:
        raise SparsifyError("pruning.shrink: a trainer's optimiser cannot follow; call sparsify.shrink after training")
    return settings


def _removed_share(weights: Iterable[MaskedWeight]) -> float:
    kept, size = kept_of(weights)
    return (size - kept) / max(1, size)


def _removed(model: nn.Module) -> int:
    kept, size = kept_of(masked_weights(model).values())
    return size - kept
