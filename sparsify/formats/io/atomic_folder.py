"""Writing a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from ...errors import SparsifyError
from .atomic import os_errors, target_of

Ours: TypeAlias = Callable[[Path], bool]


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], ours: Ours | None = None) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `path` when the block ends, and is removed if it raises.

    `path` must not exist, or be a folder that is empty or may be replaced because `ours` returns True for it. Raises
    SparsifyError as `check_folder` does.
    """
    check_folder(path, ours)
    target = target_of(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    old = temporary.with_suffix(".old")
    with os_errors(path, target):
        temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            # Checked again after the rename, when nobody writes to it any longer.
            target.rename(old)
            _refuse_others(path, old, ours)
        temporary.rename(target)
    except BaseException:
        if old.is_dir():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_folder(path: str | os.PathLike[str], ours: Ours | None = None) -> None:
    """Raise SparsifyError if a folder could not be written at `path`; nothing is touched."""
    target, where = target_of(path), f"cannot write {os.fspath(path)}"
    with os_errors(path, target):
        if not target.parent.is_dir():
            raise SparsifyError(f"{where}: there is no folder {target.parent}")
        if target.exists() and not target.is_dir():
            raise SparsifyError(f"{where}: it exists and is not a folder")
    if not os.access(target.parent, os.W_OK):
        raise SparsifyError(f"{where}: not allowed to write in {target.parent}")
    if target.is_dir():
        _refuse_others(path, target, ours)


def _refuse_others(path: str | os.PathLike[str], folder: Path, ours: Ours | None) -> None:
    """Raise SparsifyError, which names `path`, unless `folder` may be replaced."""
    if any(folder.iterdir()) and (ours is None or not ours(folder)):
        changed = "" if ours is None else " (one as sparsify wrote it, without a change, would be replaced)"
        raise SparsifyError(f"cannot write {os.fspath(path)}: the folder exists and is not empty{changed}")
