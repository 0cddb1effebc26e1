"""Restarts by torchrun (`--max-restarts`): the run resumes from what its processes had written."""

from __future__ import annotations

from pathlib import Path

from ...formats.io.atomic import atomic_write
from ...processes.launch import Launch
from ...processes.ranks import Ranks
from ..recipe.read import Recipe
from .run_folder import RECIPE, STARTED_BY, check_same, one_line


def note_start(folder: Path, launch: Launch) -> None:
    """Write to a run's folder which torchrun started it, if one did. The folder must be locked."""
    if launch.agent:
        atomic_write(folder / STARTED_BY, launch.agent.encode())


def goes_on(folder: Path, recipe: Recipe, launch: Launch) -> bool:
    """Return whether torchrun restarts the run in `folder`, so that it should resume.

    False for an older run that the first start refused or was to replace. Raises SparsifyError if the recipe was
    changed meanwhile.
    """
    if not (launch.restarts and launch.agent):
        return False
    with one_line(folder):
        mark = folder / STARTED_BY
        if not (folder / RECIPE).exists() or not mark.exists() or mark.read_bytes() != launch.agent.encode():
            return False
    check_same(folder, recipe)
    return True


def resumes(folder: Path, recipe: Recipe, launch: Launch, ranks: Ranks, *, asked: bool) -> bool:
    """Return, the same on all processes, whether to resume: because it was asked for, or after a restart."""
    with ranks.together():
        asked = asked or (ranks.first and goes_on(folder, recipe, launch))
    return bool(ranks.of_first(asked))
