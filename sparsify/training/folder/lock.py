"""One writer to a run's folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import warnings
from pathlib import Path

from ...errors import RunError, RunWarning, SparsifyError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_HELD = frozenset({errno.EACCES, errno.EAGAIN})
_here: set[Path] = set()  # the system's lock belongs to a process: it does not keep two runs of one process apart


class Lock:
    """The lock of one run's folder, which must exist; a context manager.

    A POSIX record lock on an open file, which NFS keeps too and which no child inherits: the system frees it even after
    `kill -9`. The file's text (host, process, start) is for people, and for file systems without locks.
    Raises SparsifyError that names the process if another one holds it, or if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, Path(os.path.realpath(folder))
        self._path = self._key / NAME

    def __enter__(self) -> Lock:
        if self._key in _here:
            raise SparsifyError(f"{self._folder}: this process is writing the run in it already")
        self._descriptor = self._locked()
        os.ftruncate(self._descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since},\n".encode(), 0)
        _here.add(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        _here.discard(self._key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._is_there():
                self._path.unlink()
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise RunError if the folder was moved, removed or replaced."""
        if not self._is_there():
            raise RunError(f"{self._folder}: the run's folder was moved, removed or replaced while it was written")

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def _locked(self) -> int:
        while True:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise SparsifyError(f"{self._folder}: cannot be written ({error.strerror})") from None
            try:
                self._take()
                if self._is_there():
                    return self._descriptor
            except BaseException:
                os.close(self._descriptor)
                raise
            # Its last holder removed the file between our opening it and our locking it.
            os.close(self._descriptor)

    def _take(self) -> None:
        try:
            if fcntl is not None:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            reason = "this system has no such locks"
        except OSError as error:
            if error.errno in _HELD:
                raise self._refusal("is writing") from None
            reason = str(error.strerror)
        if _may_live(os.pread(self._descriptor, 500, 0).decode(errors="replace")):
            raise self._refusal("may be writing", f"; remove {self._path} if it is not") from None
        warnings.warn(
            f"{self._folder}: cannot be locked ({reason}): do not write to it from two processes",
            RunWarning,
            stacklevel=2,
        )

    def _refusal(self, does: str, advice: str = "") -> SparsifyError:
        text = " ".join(os.pread(self._descriptor, 500, 0).decode(errors="replace").split())
        who = text or "another process"
        return SparsifyError(f"{self._folder}: {who} {does} the run in it{advice}")


def check_free(folder: Path) -> None:
    """Raise SparsifyError that names the process if one is writing the run in `folder`; nothing is left changed."""
    if (folder / NAME).exists():
        with Lock(folder):
            pass


def _may_live(text: str) -> bool:
    """Return whether the process named in a lock may still run; True for one on another host."""
    words = text.replace(",", "").split()
    if len(words) < 4 or not words[1].isdigit():
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return int(words[1]) != os.getpid()
