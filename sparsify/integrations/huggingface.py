"""HuggingFaceCallback: pruning in the Trainer of transformers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..arguments import takes
from ..errors import RunWarning, SparsifyError
from ..pruning.settings.prune import Pruning
from .loop import LoopPruning, check_pruning


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss that a transformers model computes for a batch with labels, on the model's device."""
    device = next(model.parameters()).device
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    loss: Tensor = model(**inputs).loss
    return loss


class HuggingFaceCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes the model of a `transformers.Trainer`: `Trainer(..., callbacks=[HuggingFaceCallback({"sparsity": 0.5})])`.

    The model is converted when the trainer is made, unless it carries masks, and pruned after each optimiser step over
    as many steps as the trainer plans. The trainer's checkpoints carry the masks and the pruner's state, and
    `resume_from_checkpoint` continues from them. Until the last update no checkpoint counts as the best. At the end the
    removed values are set to zero in the weights; a warning follows if the pruning was cut short.
    The trainer's records get "sparsity", with `per_layer` also "sparsity/<weight>"; those that go to `report_to` only
    after `attach(trainer)`. `pruning`, `example_input`, `batches`, `loss_fn` and `seed` are those of `LoopPruning`;
    by default the loss is the model's own.
    """

    @takes(pruning=(Pruning, Mapping), seed=Integral, per_layer=bool)
    def __init__(
        self,
        pruning: Pruning | Mapping[str, Any],
        *,
        per_layer: bool = False,
        example_input: Any = None,
        batches: Iterable[Any] | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """Check the settings. Raises SparsifyError if they are wrong."""
        self.pruning = check_pruning(pruning)
        self.per_layer = per_layer
        self.loop: LoopPruning | None = None
        self._given = {"example_input": example_input, "batches": batches, "loss_fn": loss_fn or model_loss}
        self._seed = seed
        self._first = False

    def attach(self, trainer: Trainer) -> None:
        """Put the callback first among the trainer's, so that the loggers of `report_to` get the sparsities too."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]
        self._first = True
        self._take(trainer.model)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Convert the model."""
        self._take(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the pruning, or continue the checkpoint's."""
        model: nn.Module = kwargs["model"]
        if state.global_step and not self._has(model):  # made by `model_init`, or the callback was added late
            raise SparsifyError(
                "HuggingFaceCallback: training goes on with a model that was loaded before it had masks; give a new "
                "callback to Trainer(callbacks=[...]), or call attach(trainer), before train(), and no model_init"
            )
        self._take(model)
        for line in self._unsaid(args, model):
            warnings.warn(f"HuggingFaceCallback: {line}", RunWarning, stacklevel=2)
        batches = kwargs.get("train_dataloader")
        per_epoch = None
        if batches is not None and hasattr(batches, "__len__"):
            per_epoch = max(1, math.ceil(len(batches) / args.gradient_accumulation_steps))
        self._running().begin(state.max_steps, per_epoch, step=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prune after an optimiser step."""
        loop = self._running()
        pruner = loop.began()
        ended = pruner.finished
        loop.step()
        if pruner.finished and not ended:  # a metric reached with fewer weights removed does not compare
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the sparsities to a record."""
        if self.loop is None or self.loop.pruner is None or logs is None:
            return
        metrics = self.loop.metrics(per_layer=self.per_layer)
        logs.update(metrics)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the removed values to zero, and warn if updates were still due."""
        self._running().finish()

    def _has(self, model: nn.Module) -> bool:
        return self.loop is not None and self.loop.model is model and not self.loop.ended

    def _take(self, model: nn.Module) -> None:
        if not self._has(model):
            self.loop = LoopPruning(model, self.pruning, seed=self._seed, **self._given)

    def _unsaid(self, args: TrainingArguments, model: nn.Module) -> Iterator[str]:
        if args.report_to and not self._first:
            yield f"{', '.join(args.report_to)}: gets no sparsity unless you call attach(trainer) before train()"
        if args.save_strategy != "no" and any(cls.__module__.startswith("peft.") for cls in type(model).__mro__):
            yield "the trainer's checkpoints hold the adapters alone: a killed run cannot go on with its masks"

    def _running(self) -> LoopPruning:
        assert self.loop is not None
        return self.loop
