"""Opening a run: lock its folder, prepare its training and, on resume, restore its last checkpoint."""

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
from ...surgery.mask_state.sharding import whole_state
from ..folder import run_folder as folders
from ..folder.checkpoint_files import Checkpoints
from ..folder.conditions import note_conditions
from ..folder.lock import Lock
from ..folder.restarts import note_start
from ..recipe.read import Recipe
from ..records.log import Log
from ..records.tensorboard import note_overlap
from ..setup.prepare import Prepared, prepare, seed_own, share
from ..setup.rehearse import is_here
from .state import NEEDED, restore


@dataclass
class Opened:
    """A run that is ready to start from `state`, {} for a new one.

    Of several processes only the first has a `lock` and a `log`: it alone writes.
    """

    folder: Path
    prepared: Prepared
    checkpoints: Checkpoints
    state: dict[str, Any]
    lock: Lock | None = None
    log: Log | None = None

    def note_start(self, launch: Launch) -> None:
        """Record which torchrun started the run, so that a restart by it resumes the run."""
        with self.prepared.training.ranks.together():
            if self.lock is not None:
                note_start(self.folder, launch)

    def begin_log(self, stack: ExitStack) -> None:
        """Open the log of records; `stack` closes it."""
        training = self.prepared.training
        with training.ranks.together():
            if training.ranks.first:
                note_conditions(self.folder, training.step, training.accelerator.device, training.processes)
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
    """Return the run of `recipe` in `folder`, which stays locked until `stack` closes; `given` is (model, data).

    All processes of `ranks` call it at once; an error in one ends all.
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
    """Yield the lock of a folder, which is created if it is missing."""
    with folders.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder) as lock:
        yield lock


def _keep_masks(opened: Opened) -> None:
    """Write the masks at the end of each cycle; a run resumed from before one writes the same file again."""
    prepared, pruner = opened.prepared, opened.prepared.training.pruner
    if pruner is None or not pruner.pruning.schedule.cyclical:
        return

    def keep(cycle: int) -> None:
        ranks = prepared.training.ranks
        with whole_state(pruner.model, keep=ranks.first), ranks.together():
            if opened.lock is not None and opened.log is not None:
                opened.lock.check()
                _write_masks(prepared, opened.folder, cycle)
                note_overlap(opened.log, pruner.model, opened.folder, cycle, prepared.training.step)

    pruner.on_cycle_end = keep


def _write_masks(prepared: Prepared, folder: Path, cycle: int) -> None:
    pruner, path = prepared.training.pruner, folder / folders.MASKS.format(cycle)
    assert pruner is not None
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    # Not `save`, which warns of an unfinished schedule.
    write(pruner.model, path, "masks", {"spec": prepared.spec, "arguments": prepared.arguments}, {})
