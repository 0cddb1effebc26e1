"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...errors import RunError, SparsifyError

Chunk: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]
_BYTES = (bytes, bytearray, memoryview, np.ndarray)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BAD_PATH = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})


def atomic_write(path: str | os.PathLike[str], chunks: Chunk | Iterable[Chunk]) -> int:
    """Write `chunks` (bytes, or an iterable of bytes, memoryviews or arrays) to `path`; return the bytes written.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and renamed, so that a reader sees
    the old file or the new one, never half of it. On any error, in the writing or in the iterable, the temporary file
    is removed and an old file stays as it was. A symbolic link is followed and kept; an old file's permissions are
    kept. Raises SparsifyError if the folder does not exist or is not writable, RunError if there is no space left.
    """
    target = target_of(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    pieces = [chunks] if isinstance(chunks, _BYTES) else chunks
    with os_errors(path, target):
        descriptor = _create(target, temporary)
    try:
        try:
            written = 0
            for piece in pieces:
                with os_errors(path, target):
                    written += _write_all(descriptor, piece)
            with os_errors(path, target):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with os_errors(path, target):
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)
    return written


def is_temporary(path: Path) -> bool:
    """Return whether `path` has the name of a temporary file of `atomic_write`, as a killed process leaves one."""
    return re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name) is not None


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return the path that `path` leads to over symbolic links. Raises SparsifyError if these form a loop."""
    target = Path(os.path.realpath(path))
    with os_errors(path, target):
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise SparsifyError if `atomic_write` could not write `path`; nothing is touched."""
    target = target_of(path)
    with os_errors(path, target):
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if target.exists() and not target.is_file():
            raise _not_a_file()
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _not_a_file() -> OSError:
    return OSError(errno.EISDIR, "it exists and is not a file")


def _create(target: Path, temporary: Path) -> int:
    """Return a descriptor of the new, empty temporary file, with the old file's permissions if there is one."""
    mode = None
    with contextlib.suppress(FileNotFoundError):
        old = target.stat().st_mode
        if not stat.S_ISREG(old):
            # Renaming over a device or a pipe would destroy it.
            raise _not_a_file()
        mode = stat.S_IMODE(old)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    if mode is not None and os.name == "posix":
        with contextlib.suppress(PermissionError):  # some file systems have no permissions to keep
            os.fchmod(descriptor, mode)
    return descriptor


def _write_all(descriptor: int, piece: Any) -> int:
    view = memoryview(piece)
    size = view.nbytes
    if size:  # memoryview.cast refuses a shape with a zero in it
        view = view.cast("B")
        while view.nbytes:
            view = view[os.write(descriptor, view) :]
    return size


def _flush_folder(folder: Path) -> None:
    """Flush the folder, where the system can, so that the rename is durable; the content is complete either way."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str], target: Path) -> Iterator[None]:
    """Raise an OSError in the block as a one-line error that a user can act on."""
    try:
        yield
    except OSError as error:
        where = f"cannot write {os.fspath(path)}"
        if error.errno in _NO_SPACE:
            raise RunError(f"{where}: no space left ({error.strerror}); nothing was written") from error
        if error.errno == errno.ENOENT:
            raise SparsifyError(f"{where}: there is no folder {target.parent}") from error
        if error.errno in _REFUSED:
            raise SparsifyError(f"{where}: not allowed to write in {target.parent} ({error.strerror})") from error
        kind = SparsifyError if error.errno in _BAD_PATH else RunError
        raise kind(f"{where}: {error.strerror or error}; nothing was written") from error
