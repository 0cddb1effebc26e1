"""A whole training run in its folder: started or resumed, logged, checkpointed, saved."""

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
from ...surgery.mask_state.sharding import whole_state
from ..data.bad_images import dead_workers
from ..data.own_data import own_settings
from ..folder import run_folder as folders
from ..folder.restarts import resumes
from ..loop.optimizer import joined
from ..loop.train_steps import Record, Training, train_steps
from ..recipe.plugin import as_plugin
from ..recipe.read import Recipe, check_names, parse_recipe, read_recipe
from ..records.log import plain_record
from ..records.progress_bar import progress_bar
from ..records.result_text import result_lines
from ..setup.own_model import own_model_settings
from ..setup.prepare import Prepared
from ..setup.split import check_batch_size, check_same_recipe
from .keeper import Keeper
from .opening import Opened, open_run

_COUNTED = {"flops": "multiply_adds", "parameters": "parameters"}  # what a sparsity is of -> how a shrink calls it


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the trained model with its masks, the last record, the run's folder, and what was pruned.

    With `train.ema` the model is the average of the weights; test results and the saved file are those of the average.
    With `train.shard` the model of several processes is in parts (DTensors); the saved file is whole.

    `shrunk` is None unless the model was shrunk; then it has "parameters" and "multiply_adds" before and after, and
    more, and the `share` of `report` is the share removed from the model.

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

    - `out`: the run's folder, by default runs/<recipe>-<model>-<seed>; `TrainResult` lists its files.
    - `resume`: continue the run in `out` from its last sound checkpoint, to the same bits; `recipe` may then be None. A
      RunWarning names a damaged checkpoint, and what may change the bits: threads, processor, version of torch.
    - `model`: trained in place instead of the recipe's, which may be left out; recipe.yaml calls it python:<its class>
      unless it has the state of the named model.
    - `data`: a torch.utils.data.Dataset or DataLoader, or a pair (training, test) of them, instead of the recipe's
      (docs/data.md). A resumed run needs it again.
    - `plugin`: a Python file that is executed; the recipe can name its criteria, schedules and data sets
      (docs/plugins.md). A resumed run needs the same file.
    - `check`: verify before training that all-ones masks change no bit. `progress`: show a progress bar.
    - `on_start`, `on_record`: called before the first step, and with each record of `train_steps`.
    - `stop`: called after each step; when it returns True, a checkpoint is written and RunStopped raised.

    Started in several processes by torchrun or accelerate, all train one model, each on its share of every batch; the
    first writes the folder, and each calls its own callbacks (docs/processes.md). Raises SparsifyError for a mistake in
    the arguments and for a folder that another process writes to, RunError when the disk is full or the folder gone,
    and Diverged, a RunError, when loss or weights are no longer finite.
    """
    merged, folder = _recipe_and_folder(recipe, out, resume, model, data, plugin)
    with ExitStack() as stack:
        opened = _joined_and_opened(stack, merged, folder, (model, data), resume, overwrite, check)
        if on_start is not None:
            on_start(opened.prepared, folder)
        opened.begin_log(stack)
        training = opened.prepared.training
        bar = stack.enter_context(progress_bar(training)) if progress and training.ranks.first else None
        return _train_and_save(opened, [one for one in (on_record, bar) if one is not None], stop)


def _joined_and_opened(
    stack: ExitStack,
    recipe: Recipe,
    folder: Path,
    given: tuple[nn.Module | None, Any],
    resume: bool,
    overwrite: bool,
    check: bool,
) -> Opened:
    """Join the processes of this launch and return their run, opened until `stack` closes."""
    launch = read_launch()
    check_batch_size(recipe.data, launch.size)
    stack.enter_context(others_lost(launch.size))
    ranks = stack.enter_context(joined(recipe.train, launch))
    check_same_recipe(recipe, ranks)
    resume = resumes(folder, recipe, launch, ranks, asked=resume)
    opened = open_run(stack, recipe, folder, given, ranks, resume=resume, overwrite=overwrite, check=check)
    opened.note_start(launch)
    return opened


def _train_and_save(
    opened: Opened, callbacks: Sequence[Callable[[Record], None]], stop: Callable[[], bool]
) -> TrainResult:
    """Run all steps with `callbacks` on each record, save the model and return the result."""
    prepared, folder, training = opened.prepared, opened.folder, opened.prepared.training
    keeper = Keeper(opened, save_best=lambda record: _save(prepared, folder / folders.BEST, record), stop=stop)
    with _reproducible(), dead_workers(), keeper.naming_last_checkpoint():
        for record in train_steps(training, keeper.pause):
            keeper.keep(record)
            for callback in callbacks:
                callback(record)
            keeper.stop_if_asked()
    with whole_state(training.result, keep=training.ranks.first), training.ranks.together():
        if opened.lock is not None:
            opened.lock.check()
            _save(prepared, folder / folders.MODEL, keeper.last_record)
    return TrainResult(training.result, keeper.last_record, folder, _report(training), training.shrunk)


def _report(training: Training) -> PruningReport | None:
    report = training.pruner.report() if training.pruner else None
    if report is not None and training.shrunk is not None and report.of in _COUNTED and report.kind == "units":
        before, after = training.shrunk[_COUNTED[report.of]]
        report = replace(report, share=1 - after / before)
    return report


def _recipe_and_folder(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str] | None,
    out: str | PathLike[str] | None,
    resume: bool,
    model: nn.Module | None,
    data: Any,
    plugin: str | PathLike[str] | None,
) -> tuple[Recipe, Path]:
    own_plugin = as_plugin(plugin)
    if recipe is None:
        if not resume or out is None:
            raise SparsifyError("train: a recipe is needed, or resume=True and the run's folder as out")
        given = folders.stored_recipe(Path(out), plugin=own_plugin)
    elif isinstance(recipe, Mapping):
        named = model is None or "model" in recipe
        whole = recipe if named else {**recipe, "model": f"{FROM_PYTHON}{type(model).__name__}"}
        given = parse_recipe(whole, plugin=own_plugin)
    elif isinstance(recipe, Recipe):
        if own_plugin is not None:
            raise SparsifyError("train: a Recipe has its plugin already: read_recipe(..., plugin=FILE)")
        given = recipe
    else:
        given = read_recipe(Path(recipe), plugin=own_plugin)
    if model is not None:
        given = given.model_copy(update={"model": own_model_settings(model, given.model)})
    if isinstance(recipe, Mapping):
        check_names(given)
    if data is not None:
        given = given.model_copy(update={"data": own_settings(data, given.data)})
    folder = folders.default_folder(given) if out is None else Path(out)
    if resume:
        folders.check_same(folder, given)
    return given, folder


@contextmanager
def _reproducible() -> Iterator[None]:
    """Make cuDNN deterministic within the block: by default it picks its algorithms by timing them."""
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
