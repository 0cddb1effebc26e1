"""LightningCallback: pruning in the Trainer of Lightning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from types import NoneType
from typing import Any

from torch import Tensor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import Callback, LightningModule, Trainer

from ..arguments import takes
from ..errors import SparsifyError
from ..pruning.report import SparsityWarning
from ..pruning.settings.prune import Pruning
from ..surgery.mask_state.masks import all_masked_parameters
from .loop import LoopPruning, check_pruning


class LightningCallback(Callback):  # type: ignore[misc]
    """Prunes the module of a Lightning trainer: `Trainer(..., callbacks=[LightningCallback({"sparsity": 0.5})])`.

    The module is converted in `setup`, before checkpoints are loaded, unless it carries masks, and pruned after each
    optimiser step, over as many steps as the trainer estimates or `total_steps` (with several optimisers the steps of
    all, as `trainer.global_step` counts). Checkpoints carry the masks and the
    pruner's state, and `ckpt_path` continues from them. At the end the removed values are set to zero in the weights; a
    warning follows if the pruning was cut short, or a best checkpoint was written before its end.
    Under `strategy="ddp_spawn"`, `"ddp_fork"` and `"ddp_notebook"` call `sparsify.convert(module)` before `fit`.
    The module logs "sparsity", with `per_layer` also "sparsity/<weight>". List averages (`WeightAveraging`) after it in
    `callbacks`. `pruning`, `example_input`, `batches`, `loss_fn` and `seed` are those of `LoopPruning`.
    """

    @takes(pruning=(Pruning, Mapping), seed=Integral, per_layer=bool, total_steps=(Integral, NoneType))
    def __init__(
        self,
        pruning: Pruning | Mapping[str, Any],
        *,
        per_layer: bool = False,
        total_steps: int | None = None,
        example_input: Any = None,
        batches: Iterable[Any] | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        """Check the settings. Raises SparsifyError if they are wrong."""
        self.pruning = check_pruning(pruning)
        self.per_layer, self.total_steps = per_layer, total_steps
        self.loop: LoopPruning | None = None
        self._given = {"example_input": example_input, "batches": batches, "loss_fn": loss_fn, "seed": seed}
        self._loaded: dict[str, Any] | None = None
        self._best_before: dict[int, str] = {}  # paths of best checkpoints when pruning ended, by callback

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert the module."""
        if self.loop is None or self.loop.model is not pl_module or (self.loop.ended and stage == "fit"):
            pl_module.configure_model()  # it may make the layers, and may be called twice
            if stage == "fit":
                _check_masks_return(trainer, pl_module)
            self.loop = LoopPruning(pl_module, self.pruning, carry=False, **self._given)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the pruning, or continue the checkpoint's."""
        if len(trainer.optimizers) > 1 and self.total_steps is None:
            count = len(trainer.optimizers)
            raise SparsifyError(
                f"LightningCallback: the module has {count} optimisers: give total_steps, the steps of all of them "
                "together, as trainer.global_step counts"
            )
        total = self.total_steps or trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise SparsifyError("LightningCallback: the training has no end; give total_steps, or max_steps to Trainer")
        batches = trainer.num_training_batches
        per_epoch = None if batches == math.inf else max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        self._running().begin(int(total), per_epoch, step=trainer.global_step, state=self._loaded)
        self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prune if the batch ended with an optimiser step, and log the sparsities."""
        loop = self._running()
        pruner = loop.began()
        ended = pruner.finished
        while pruner.position < trainer.global_step:
            loop.step()
        if pruner.finished and not ended:
            self._best_before = {id(kept): kept.best_model_path for kept in _monitored(trainer)}
        pl_module.log_dict(loop.metrics(per_layer=self.per_layer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the removed values to zero, and warn if updates were still due."""
        self._running().finish()
        for kept in _monitored(trainer):
            if kept.best_model_path and kept.best_model_path == self._best_before.get(id(kept)):
                text = f"{kept.best_model_path}: the best checkpoint by {kept.monitor} was written before pruning ended"
                warnings.warn(text, SparsityWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """Return the pruner's state, for a checkpoint."""
        return {} if self.loop is None or self.loop.pruner is None else self.loop.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the pruner's state from a checkpoint until training starts."""
        self._loaded = state_dict or None

    def _running(self) -> LoopPruning:
        assert self.loop is not None
        return self.loop


def _check_masks_return(trainer: Trainer, module: LightningModule) -> None:
    """Raise SparsifyError if the trained weights return to a module of another process that has no place for masks."""
    launcher = [cls.__name__ for cls in type(trainer.strategy.launcher).__mro__]
    if "_MultiProcessingLauncher" in launcher and next(all_masked_parameters(module), None) is None:
        raise SparsifyError(
            "LightningCallback: this strategy trains copies of the module in other processes, and the module that you "
            'have would not get the masks: call sparsify.convert(module) before fit, or use strategy="ddp"'
        )


def _monitored(trainer: Trainer) -> list[Any]:
    return [kept for kept in trainer.checkpoint_callbacks if getattr(kept, "monitor", None)]
