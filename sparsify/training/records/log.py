"""The log of a run's records: metrics.jsonl, TensorBoard events, and the trackers that its recipe names."""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import RunError, RunWarning, SparsifyError
from ..folder.run_folder import METRICS
from ..recipe.read import Recipe
from .tensorboard import write_recipe
from .trackers import start_trackers

_UNPLOTTED = ("step", "epoch", "seconds", "shrunk", "test_weights")
_CLOSING_SECONDS = 10.0


def plain_record(value: Any) -> Any:
    """Return a record for JSON, which has no NaN and no infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {key: plain_record(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """Writes the records of a run to metrics.jsonl, to TensorBoard and to the recipe's trackers. A context manager.

    A resumed run passes `size`, the length of metrics.jsonl at its checkpoint in bytes, and `step`: later lines are cut
    and later events hidden, so that the log is that of a run without a break; trackers get a new run. A RunWarning
    reports a last line that a crash cut short.
    """

    def __init__(self, folder: Path, recipe: Recipe | None = None, *, size: int = 0, step: int = 0) -> None:
        # Slow to import.
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        try:
            # Unbuffered: a full disk is then met in `write`, and not a second time when the file is closed.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise SparsifyError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._cut(path, size)
            self._trackers = [] if recipe is None else start_trackers(recipe, folder.resolve().name)
            self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        except BaseException:
            self._file.close()
            raise

    def _cut(self, path: Path, size: int) -> None:
        length = self._file.seek(0, os.SEEK_END)
        if length < size:
            raise SparsifyError(
                f"{path}: shorter than at the checkpoint; the run cannot go on (--overwrite starts anew)"
            )
        if length and os.pread(self._file.fileno(), 1, length - 1) != b"\n":
            warnings.warn(f"{path}: its last line was cut short by a crash and is left out", RunWarning, stacklevel=2)
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        try:
            self._file.write(json.dumps(plain_record(record), allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {self._file.name}: {error.strerror}") from None
        plotted = {key: value for key, value in record.items() if key not in _UNPLOTTED}
        for key, value in plotted.items():
            self._events.add_scalar(key, value, record["step"])
        for tracker in self._trackers:
            tracker.log(plotted, step=record["step"])

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Add what only TensorBoard shows: scalars by tag."""
        for tag, value in scalars.items():
            self._events.add_scalar(tag, value, step)

    def add_recipe(self, recipe: Recipe) -> None:
        """Add the recipe, for TensorBoard: as text and as hyperparameters."""
        write_recipe(self._events, recipe)

    def sync(self) -> int:
        """Return the length of metrics.jsonl in bytes, once it is safely on the disk."""
        self._in_time(self._events.flush)
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._in_time(self._events.close)
            for tracker in self._trackers:
                tracker.finish()
        finally:
            self._file.close()

    def _in_time(self, action: Callable[[], None]) -> None:
        """Run `action` with a time limit: it waits for TensorBoard's own thread, which may be stuck or dead."""
        errors: list[BaseException] = []

        def act() -> None:
            try:
                action()
            except BaseException as error:  # it is raised where it can be seen
                errors.append(error)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(_CLOSING_SECONDS)
        if errors:
            raise errors[0]
        if thread.is_alive():
            seconds = f"{_CLOSING_SECONDS:g} seconds"
            warnings.warn(f"TensorBoard's events were not written within {seconds}", RunWarning, stacklevel=2)
