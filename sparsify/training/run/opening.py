"""Opening a run: its folder locked, its training prepared and, where it goes on, set to its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import RunError
from ...export.save import write
from ...processes.launch import Launch
from ...processes.ranks import Ranks
from ..recipe.read import Recipe
from . import run_folder as folders
from .checkpoint_files import Checkpoints
from .conditions import note_conditions
from .lock import Lock
from .log import Log
from .prepare import Prepared, prepare, seed_own, share
from .rehearse import is_here
from .restarts import note_start
from .split import check_same_work
from .state import NEEDED, restore
from .tensorboard import note_overlap


@dataclass
class Opened:
    """A run that is about to go on from `state`, {} for a new one.

    Of several processes only the first has a `lock` and a `log`: it alone writes.
    """

    folder: Path
    prepared: Prepared
    checkpoints: Checkpoints
    state: dict[str, Any]
    lock: Lock | None = None
    log: Log | None = None

    def note_start(self, launch: Launch) -> None:
        """Let a restart by the same torchrun know the run for its own."""
        with self.prepared.training.ranks.together():
            if self.lock is not None:
                note_start(self.folder, launch)

    def begin_log(self, stack: ExitStack) -> None:
        """Open the log of records, until `stack` is left."""
        training = self.prepared.training
        with training.ranks.together():
            if training.ranks.first:
                note_conditions(self.folder, training.step, training.accelerator.device, training.ranks.size)
                size = self.state.get("metrics_size", 0)
                recipe = self.prepared.recipe
                self.log = stack.enter_context(Log(self.folder, recipe, size=size, step=training.step))
                if not training.step:
                    self.log.add_recipe(recipe)
        _keep_masks(self)


def open_run(
    stack: ExitStack,
    recipe: Recipe,
    folder: Path,
    given: tuple[nn.Module | None, Any],
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
    check: bool,
) -> Opened:
    """Return the run of `recipe` in `folder`, which is locked until `stack` is left; `given` are a model and data.

    All processes of `ranks` call it at once, and what one of them cannot do ends all.
    """
    lock: Lock | None = None
    with ranks.together():
        if resume and ranks.first:
            lock = stack.enter_context(Lock(folder))
            folders.remove_left_overs(folder)
        elif ranks.first:
            folders.check_new(folder, overwrite=overwrite)
    model, data = given
    # One machine may have what another has to fetch.
    [fetched] = ranks.any(ranks.size > 1 and data is None and (recipe.model.pretrained or not is_here(recipe)))
    check = check and not resume and ranks.first
    prepared = prepare(recipe, model=model, data=data, check=check, ranks=ranks, in_turn=fetched)
    check_same_work(prepared.training, ranks)
    checkpoints = Checkpoints(folder, recipe.train.checkpoint.keep)
    state: dict[str, Any] = {}
    with ranks.together():
        if ranks.first and not resume:
            lock = stack.enter_context(_made(folder))
            folders.create(folder, recipe, overwrite=overwrite)
        elif ranks.first:
            state = checkpoints.read(NEEDED) or {}
    state = ranks.of_first(state)
    with ranks.together():
        if state:
            restore(prepared, state, folder)
        elif not ranks.first:
            seed_own(prepared.training)
    share(prepared.training)
    return Opened(folder, prepared, checkpoints, state, lock)


@contextmanager
def _made(folder: Path) -> Iterator[Lock]:
    """Yield the lock of a folder, which is made if it is not there."""
    with folders.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder) as lock:
        yield lock


def _keep_masks(opened: Opened) -> None:
    """Let the masks at the end of each cycle be written; a run that goes on from before it writes the same again."""
    prepared, pruner = opened.prepared, opened.prepared.training.pruner
    if pruner is None or not pruner.pruning.schedule.cyclical:
        return

    def keep(cycle: int) -> None:
        with prepared.training.ranks.together():
            if opened.lock is not None and opened.log is not None:
                opened.lock.check()
                write_masks(opened.folder / folders.MASKS.format(cycle), cycle, opened.log)

    def write_masks(path: Path, cycle: int, log: Log) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from None
        # Not `save`, which warns of a schedule that is cut short: this one goes on.
        write(pruner.model, path, "masks", {"spec": prepared.spec, "arguments": prepared.arguments}, {})
        note_overlap(log, pruner.model, opened.folder, cycle, prepared.training.step)

    pruner.on_cycle_end = keep
