"""A run's checkpoints on the disk: the newest is `last`, the ones before are named after their step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import RunWarning, SparsifyError
from .checkpoint import read_state, read_step, write_state
from .run_folder import LAST, NEXT, OLDER

_PATTERNS = (LAST, NEXT, OLDER.format("*"))


class Checkpoints:
    """The checkpoints in a run's folder, of which the `keep` newest sound ones stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._damaged: set[Path] = set()

    def write(self, state: Mapping[str, Any]) -> None:
        """Make `state` the last checkpoint, whole or not at all; its "step" is the number of steps done.

        Raises what `write_state` raises; the earlier checkpoints then remain.
        """
        following, last = self._folder / NEXT, self._folder / LAST
        self._name_after_step(following, state["step"])  # of a run that was killed before it became `last`
        write_state(following, state)
        for path in self._damaged:
            path.unlink(missing_ok=True)
        self._damaged.clear()
        self._name_after_step(last, state["step"])
        following.replace(last)
        steps = self._steps()
        for path in sorted(steps, key=lambda path: -(steps[path] or 0))[self._keep :]:
            path.unlink()

    def read(self, needed: Sequence[str]) -> dict[str, Any] | None:
        """Return the newest sound checkpoint's state, or None if there is no checkpoint at all.

        One is damaged if a checksum does not agree or a key of `needed` is missing; a RunWarning names it. Raises
        SparsifyError, one line, if none is sound. Nothing on the disk is changed.
        """
        problems: list[str] = []
        steps = self._steps()
        # Files whose step cannot be read come first, so that a warning names them.
        for path in sorted(steps, key=lambda path: (steps[path] is not None, -(steps[path] or 0))):
            try:
                state = _read(path, needed)
            except SparsifyError as error:
                problems.append(str(error))
                self._damaged.add(path)
                continue
            for problem in problems:
                text = f"{problem}; going on from {path.name}, step {state['step']:,}"
                warnings.warn(text, RunWarning, stacklevel=2)
            return state
        if problems:
            raise SparsifyError(f"{'; '.join(problems)}; no sound checkpoint is left (--overwrite starts anew)")
        return None

    def _name_after_step(self, path: Path, now: int) -> None:
        step = read_step(path) if path.exists() and path not in self._damaged else None
        if step is not None and step != now:
            path.replace(self._folder / OLDER.format(step))

    def _steps(self) -> dict[Path, int | None]:
        return {path: read_step(path) for pattern in _PATTERNS for path in self._folder.glob(pattern)}


def _read(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    state = read_state(path)
    if missing := [key for key in needed if key not in state]:
        raise SparsifyError(f"{path}: damaged checkpoint (without {', '.join(missing)})")
    return state
