"""A whole training run in its folder: started, gone on with, logged, checkpointed, saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from ...arguments import PATH, takes
from ...errors import SparsifyError
from ...export.save import save, write
from ...formats.file.cuts_text import cuts_from, cuts_text, read_cuts
from ...models import FROM_PYTHON
from ...pruning.report import PruningReport
from ...surgery.masks import get_masks, set_masks
from ...surgery.shrink.cuts import cuts_of
from ..data.bad_images import dead_workers
from ..data.own_data import own_settings
from ..loop.shrink_midway import cut_as_before
from ..loop.train_steps import Record, Training, train_steps
from ..recipe.read import Recipe, check_names, parse_recipe, read_recipe
from . import run_folder as folders
from .checkpoint import random_state, read_state, set_model_state, set_optimizer_state, set_random_state, write_state
from .own_model import own_model_settings
from .prepare import Prepared, prepare
from .result_text import result_lines

# A checkpoint is written at an epoch's end if the last one is old enough that writing takes at most 5 % of the time,
# and within a long epoch at the first record after ten minutes.
_WRITING_SHARE = 0.05
_LONGEST_SECONDS = 600.0
_RESTORED = ("step", "seconds", "metrics_size", "model", "optimizer", "pruner", "scaler", "random")
_COUNTED = {"flops": "multiply_adds", "parameters": "parameters"}  # what a sparsity is of -> how a shrink calls it


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the trained model with its masks, the last record, the run's folder, and what was pruned.

    `shrunk` tells what was taken out of the model, if that was: "parameters" and "multiply_adds" before and after, and
    more. The `share` of `report` is then the one that is gone from the model.
    """

    model: nn.Module
    metrics: dict[str, Any]
    folder: Path
    report: PruningReport | None
    shrunk: dict[str, Any] | None = None

    def __str__(self) -> str:
        lines = [str(self.report) if self.report is not None else "dense: nothing was pruned"]
        return "\n".join([*lines, *result_lines(self.metrics, self.shrunk), f"in {self.folder}"])


@takes(
    out=(*PATH, NoneType),
    resume=bool,
    overwrite=bool,
    model=(nn.Module, NoneType),
    check=bool,
    recipe=(Mapping, Recipe, *PATH, NoneType),
)
def train(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str] | None,
    *,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    model: nn.Module | None = None,
    data: Any = None,
    check: bool = True,
    on_start: Callable[[Prepared, Path], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> TrainResult:
    """Train and prune as `recipe` says (a Recipe, a mapping like one, or a path) and return the result.

    The run's folder is `out`, by default runs/<recipe>-<model>-<seed>. It gets recipe.yaml (merged), metrics.jsonl,
    TensorBoard events, checkpoints/last.safetensors, checkpoints/best.safetensors (the best test accuracy at the final
    sparsity), masks/cycle-N.safetensors at the end of each cycle, and model.safetensors. With `resume` the run in it
    goes on from its last checkpoint to the same bits; then `recipe` may be None. `model` is trained, in place, instead
    of the recipe's, which may then be left out; where its state is not that of the recipe's, recipe.yaml calls it
    python:<its class>. `data` takes the place of the recipe's: a torch.utils.data.Dataset or DataLoader, or a pair of
    them for training and test (see docs/data.md); a run that goes on needs it again. `check` verifies that all-ones
    masks change no bit before training. `on_start` and `on_record` are called with what is about to run and with each
    record of `train_steps`.
    Raises SparsifyError for a mistake in what was asked, RunError when the loss is no longer a number or the disk full.
    """
    merged, folder = _recipe_and_folder(recipe, None if out is None else Path(out), resume, model, data)
    if not resume:
        folders.check_new(folder, overwrite=overwrite)
    prepared = prepare(merged, model=model, data=data, check=check and not resume)
    training = prepared.training
    if not resume:
        folders.create(folder, merged)
    state = _restore(training, folder) if resume else {}
    _keep_masks(prepared, folder)
    if on_start is not None:
        on_start(prepared, folder)
    metrics = state.get("last_record", {})
    size = state.get("metrics_size", 0)
    with folders.Log(folder, size=size, step=training.step) as log, _reproducible(), dead_workers():
        keeper = _Keeper(prepared, folder, log, best=state.get("best"))
        for record in train_steps(training):
            log.write(record)
            keeper.keep(record)
            metrics = record
            if on_record is not None:
                on_record(record)
    _save(prepared, folder / folders.MODEL, metrics)
    report = training.pruner.report() if training.pruner else None
    if report is not None and training.shrunk is not None and report.of in _COUNTED and report.kind == "units":
        before, after = training.shrunk[_COUNTED[report.of]]
        report = replace(report, share=1 - after / before)
    return TrainResult(training.model, metrics, folder, report, training.shrunk)


def _recipe_and_folder(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str] | None,
    out: Path | None,
    resume: bool,
    model: nn.Module | None,
    data: Any,
) -> tuple[Recipe, Path]:
    if recipe is None:
        if not resume or out is None:
            raise SparsifyError("train: a recipe is needed, or resume=True and the run's folder as out")
        given = folders.stored_recipe(out)
    elif isinstance(recipe, Mapping):
        named = model is None or "model" in recipe
        given = parse_recipe(recipe if named else {**recipe, "model": f"{FROM_PYTHON}{type(model).__name__}"})
    else:
        given = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    if model is not None:
        given = given.model_copy(update={"model": own_model_settings(model, given.model)})
    if isinstance(recipe, Mapping):
        check_names(given)
    if data is not None:
        given = given.model_copy(update={"data": own_settings(data, given.data)})
    folder = out or folders.default_folder(given)
    if resume:
        folders.check_same(folder, given)
    return given, folder


@contextmanager
def _reproducible() -> Iterator[None]:
    """Let equal seeds give equal bits on a GPU: cuDNN otherwise picks its algorithms by the clock."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _restore(training: Training, folder: Path) -> dict[str, Any]:
    """Set `training` to the folder's last checkpoint and return what else is in it, {} if there is none yet."""
    if not (folder / folders.LAST).exists():
        return {}
    state = read_state(folder / folders.LAST)
    if missing := [key for key in _RESTORED if key not in state]:
        raise SparsifyError(f"{folder / folders.LAST}: damaged checkpoint (without {', '.join(missing)})")
    if state.get("shrunk"):
        set_masks(training.model, state["masks"])
        cut_as_before(training, cuts_from(read_cuts(state["cuts"])), state["shrunk"])
    set_model_state(training.model, state["model"])
    set_optimizer_state(training.optimizer.optimizer, state["optimizer"])
    if training.pruner is not None:
        training.pruner.load_state_dict(state["pruner"])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    training.step, training.seconds = state["step"], state["seconds"]
    set_random_state(state["random"])
    return state


def _keep_masks(prepared: Prepared, folder: Path) -> None:
    """Let the masks at the end of each cycle be written; a run that goes on from before it writes the same again."""
    pruner = prepared.training.pruner
    if pruner is None or not pruner.pruning.schedule.cyclical:
        return

    def keep(cycle: int) -> None:
        path = folder / folders.MASKS.format(cycle)
        path.parent.mkdir(exist_ok=True)
        # Not `save`, which warns of a schedule that is cut short: this one goes on.
        write(pruner.model, path, "masks", {"spec": prepared.spec, "arguments": prepared.arguments}, {})

    pruner.on_cycle_end = keep


class _Keeper:
    """Writes the checkpoints of one run."""

    def __init__(self, prepared: Prepared, folder: Path, log: folders.Log, *, best: float | None) -> None:
        self._prepared = prepared
        self._folder = folder
        self._log = log
        self._best = best
        self._written_at = time.perf_counter()
        self._writing_seconds = 0.0

    def keep(self, record: Record) -> None:
        """Write the checkpoints that are due after `record`."""
        training = self._prepared.training
        accuracy = record.get("test_accuracy")
        final = training.pruner is None or training.pruner.finished
        if accuracy is not None and final and (self._best is None or accuracy > self._best):
            self._best = accuracy
            _save(self._prepared, self._folder / folders.BEST, record)
        if self._due():
            started = time.perf_counter()
            write_state(self._folder / folders.LAST, self._state(record))
            self._written_at = time.perf_counter()
            self._writing_seconds = self._written_at - started

    def _due(self) -> bool:
        training = self._prepared.training
        since = time.perf_counter() - self._written_at
        at_epoch_end = training.step % training.steps_per_epoch == 0
        affordable = since * _WRITING_SHARE >= self._writing_seconds
        return training.step == training.total_steps or (at_epoch_end and affordable) or since > _LONGEST_SECONDS

    def _state(self, record: Record) -> dict[str, Any]:
        training = self._prepared.training
        scaler = training.accelerator.scaler
        return {
            "step": training.step,
            "seconds": training.seconds,
            "last_record": record,
            "best": self._best,
            "metrics_size": self._log.sync(),
            "model": training.model.state_dict(),
            **self._cut_state(),
            "optimizer": training.optimizer.optimizer.state_dict(),
            "pruner": training.pruner.state_dict() if training.pruner else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_state(),
        }

    def _cut_state(self) -> dict[str, Any]:
        """Return what makes the shrunk model from one that is set up anew."""
        training = self._prepared.training
        cuts = cuts_of(training.model)
        if training.shrunk is None or training.pruner is None or cuts is None:
            return {}
        return {"shrunk": training.shrunk, "masks": get_masks(training.pruner.model), "cuts": cuts_text(cuts)}


def _save(prepared: Prepared, path: Path, metrics: Mapping[str, Any]) -> None:
    save(
        prepared.training.model,
        path,
        spec=prepared.spec,
        arguments=prepared.arguments,
        recipe=prepared.recipe,
        seeds={"train": prepared.recipe.train.seed},
        metrics=metrics,
        extra=prepared.training.data.extra,
    )
