"""Writing a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import SparsifyError


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty folder that becomes `path` when the block ends, and is removed if it raises.

    `path` must not exist, or be an empty folder: what is in another folder is nothing to be replaced. Raises
    SparsifyError as `check_folder` does.
    """
    check_folder(path)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise SparsifyError if it is plain already that a folder cannot be written at `path`; nothing is touched."""
    target, where = Path(os.path.realpath(path)), f"cannot write {os.fspath(path)}"
    if not target.parent.is_dir():
        raise SparsifyError(f"{where}: there is no folder {target.parent}")
    if target.exists() and not target.is_dir():
        raise SparsifyError(f"{where}: it exists and is not a folder")
    if not os.access(target.parent, os.W_OK):
        raise SparsifyError(f"{where}: not allowed to write in {target.parent}")
    if target.is_dir() and any(target.iterdir()):
        raise SparsifyError(f"{where}: the folder exists and is not empty")
