"""A whole training run in its folder: started, gone on with, logged, checkpointed, saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from ...arguments import PATH, takes
from ...errors import SparsifyError
from ...export.save import save
from ...models import FROM_PYTHON
from ...processes.launch import read_launch
from ...processes.ranks import others_lost
from ...pruning.report import PruningReport
from ..data.bad_images import dead_workers
from ..data.own_data import own_settings
from ..loop.optimizer import joined
from ..loop.train_steps import Record, Training, train_steps
from ..recipe.plugin import Plugin, as_plugin
from ..recipe.read import Recipe, check_names, parse_recipe, read_recipe
from . import run_folder as folders
from .keeper import Keeper
from .log import plain_record
from .opening import Opened, open_run
from .own_model import own_model_settings
from .prepare import Prepared
from .progress_bar import progress_bar
from .restarts import resumes
from .result_text import result_lines
from .split import check_batch_size, check_same_recipe

_COUNTED = {"flops": "multiply_adds", "parameters": "parameters"}  # what a sparsity is of -> how a shrink calls it


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the trained model with its masks, the last record, the run's folder, and what was pruned.

    With `train.ema` the model is the average, which the test figures and the file are of.

    `shrunk` tells what was taken out of the model, if that was: "parameters" and "multiply_adds" before and after, and
    more. The `share` of `report` is then the one that is gone from the model.

    The folder has recipe.yaml (merged), metrics.jsonl, conditions.json (hardware and versions), TensorBoard events,
    checkpoints/last.safetensors and the ones before it (step-N.safetensors), checkpoints/best.safetensors (the best
    test accuracy at the final sparsity), masks/cycle-N.safetensors at the end of each cycle, and model.safetensors.
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
    plugin=(*PATH, NoneType),
    resume=bool,
    overwrite=bool,
    model=(nn.Module, NoneType),
    check=bool,
    progress=bool,
    stop=(Callable, NoneType),
    on_start=(Callable, NoneType),
    on_record=(Callable, NoneType),
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
    plugin: str | PathLike[str] | None = None,
    check: bool = True,
    progress: bool = False,
    on_start: Callable[[Prepared, Path], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train and prune as `recipe` says (a Recipe, a mapping like one, or a path) and return the result.

    - `out`: the run's folder, by default runs/<recipe>-<model>-<seed>; `TrainResult` says what it gets.
    - `resume`: the run in it goes on from its last sound checkpoint to the same bits; `recipe` may be None then. A
      RunWarning tells of a damaged one, and of what may change the bits: threads, processor, version of torch.
    - `model`: trained, in place, instead of the recipe's, which may be left out; where its state is not that of the
      recipe's, recipe.yaml calls it python:<its class>.
    - `data`: a torch.utils.data.Dataset or DataLoader, or a pair of them for training and test, in place of the
      recipe's (docs/data.md). A run that goes on needs it again.
    - `plugin`: a file of yours that is executed, whose criteria, schedules and data sets the recipe can name
      (docs/plugins.md). A run goes on with the same file alone.
    - `check`: verify, before training, that all-ones masks change no bit. `progress`: show a bar.
    - `on_start`, `on_record`: called with what is about to run, and with each record of `train_steps`.
    - `stop`: asked after each step; when it returns True, a checkpoint is written and RunStopped raised.

    Started by torchrun or accelerate in several processes, all train one model on their shares of every batch, the
    first one writes the folder, and each calls what it was given (docs/processes.md).
    Raises SparsifyError for a mistake in what was asked and for a folder that another process writes to, RunError when
    the disk is full or the folder gone, its kind Diverged when loss or weights are no longer numbers.
    """
    merged, folder = _recipe_and_folder(
        recipe, None if out is None else Path(out), resume, model, data, as_plugin(plugin)
    )
    launch = read_launch()
    check_batch_size(merged.data, launch.size)
    with ExitStack() as stack:
        stack.enter_context(others_lost(launch.size))
        ranks = stack.enter_context(joined(merged.train, launch))
        check_same_recipe(merged, ranks)
        resume = resumes(folder, merged, launch, ranks, asked=resume)
        opened = open_run(stack, merged, folder, (model, data), ranks, resume=resume, overwrite=overwrite, check=check)
        opened.note_start(launch)
        training = opened.prepared.training
        if on_start is not None:
            on_start(opened.prepared, folder)
        opened.begin_log(stack)
        bar = stack.enter_context(progress_bar(training)) if progress and ranks.first else None
        last = _train_and_save(opened, folder, [one for one in (on_record, bar) if one is not None], stop)
    return TrainResult(training.result, last, folder, _report(training), training.shrunk)


def _train_and_save(
    opened: Opened, folder: Path, told: Sequence[Callable[[Record], None]], stop: Callable[[], bool]
) -> Record:
    """Make all steps, tell of each record, and save the model; return the last record."""
    prepared = opened.prepared
    keeper = Keeper(opened, save_best=lambda record: _save(prepared, folder / folders.BEST, record), stop=stop)
    with _reproducible(), dead_workers(), keeper.telling_what_is_left():
        for record in train_steps(prepared.training, keeper.pause):
            keeper.keep(record)
            for tell in told:
                tell(record)
            keeper.stop_if_asked()
    with prepared.training.ranks.together():
        if opened.lock is not None:
            opened.lock.check()
            _save(prepared, folder / folders.MODEL, keeper.last_record)
    return keeper.last_record


def _report(training: Training) -> PruningReport | None:
    report = training.pruner.report() if training.pruner else None
    if report is not None and training.shrunk is not None and report.of in _COUNTED and report.kind == "units":
        before, after = training.shrunk[_COUNTED[report.of]]
        report = replace(report, share=1 - after / before)
    return report


def _recipe_and_folder(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str] | None,
    out: Path | None,
    resume: bool,
    model: nn.Module | None,
    data: Any,
    plugin: Plugin | None,
) -> tuple[Recipe, Path]:
    if recipe is None:
        if not resume or out is None:
            raise SparsifyError("train: a recipe is needed, or resume=True and the run's folder as out")
        given = folders.stored_recipe(out, plugin=plugin)
    elif isinstance(recipe, Mapping):
        named = model is None or "model" in recipe
        whole = recipe if named else {**recipe, "model": f"{FROM_PYTHON}{type(model).__name__}"}
        given = parse_recipe(whole, plugin=plugin)
    elif isinstance(recipe, Recipe):
        if plugin is not None:
            raise SparsifyError("train: a Recipe has its plugin already: read_recipe(..., plugin=FILE)")
        given = recipe
    else:
        given = read_recipe(Path(recipe), plugin=plugin)
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


def _save(prepared: Prepared, path: Path, metrics: Mapping[str, Any]) -> None:
    save(
        prepared.training.result,
        path,
        spec=prepared.spec,
        arguments=prepared.arguments,
        recipe=prepared.recipe,
        seeds={"train": prepared.recipe.train.seed},
        metrics=plain_record(metrics),
        extra=prepared.training.data.extra,
    )
