"""Compilation of the kernels, once, in a separate thread, and their cache on disk, with a checksum."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from ...errors import CacheWarning, SparsifyError
from ..cache_folder import folder
from ..kernels import interpreter
from ..kernels.simd import WIDTH

KERNELS = Path(interpreter.__file__).parent  # the folder of the kernels
_DIGEST = 32  # bytes


def fingerprint(where: Path = KERNELS) -> bytes:
    """Return a digest of a folder's sources: the kernels with their constants and code generation."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(where.glob("*.py")))).digest()


class KernelCache(NullCache):  # type: ignore[misc]
    """One file of compiled code: a checksum of the rest, the sources' fingerprint, and Numba's result, pickled.

    Code of other sources, and a damaged file, are compiled again and replaced. `said` collects warnings for the thread
    that waits.
    """

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the cached compile result for this processor, these versions and these sources, or None."""
        target_context.refresh()
        for path in self._paths(target_context):
            try:
                content = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._say(f"{path}: the kernels kept there cannot be read, and are compiled anew: {error.strerror}")
                continue
            rest = memoryview(content)[_DIGEST:]
            try:
                if hashlib.sha256(rest).digest() != content[:_DIGEST]:
                    raise ValueError("its checksum is another")
                if rest[:_DIGEST] == fingerprint():
                    return CompileResult._rebuild(target_context, *pickle.loads(rest[_DIGEST:]))
            except Exception as error:  # noqa: BLE001 - unpickling a damaged file may raise anything
                self._say(f"{path}: the kernels kept there are damaged ({error}), and are compiled anew")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compile result to the first writable folder."""
        from ...formats.io.atomic import atomic_write

        rest = fingerprint() + dumps(data._reduce())
        fault = ""
        for path in self._paths(data.target_context):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, [hashlib.sha256(rest).digest(), rest])
                return
            except (OSError, SparsifyError) as error:
                fault = fault or str(error)
        self._say(f"the compiled kernels cannot be kept, every process compiles them anew: {fault}")

    def _paths(self, target_context: Any) -> Iterator[Path]:
        """Yield the possible paths: in NUMBA_CACHE_DIR if set, else beside the package, then in the user's cache."""
        about = (*target_context.codegen().magic_tuple(), numba.__version__, llvmlite.__version__, sys.version, WIDTH)
        name = f"sparsify-kernels-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.nbc"
        given = os.environ.get("NUMBA_CACHE_DIR")
        yield from (where / name for where in ([Path(given)] if given else [KERNELS / "__pycache__", folder()]))

    def _say(self, line: str) -> None:
        self.said.append(" ".join(line.split()))


class _Compilation(threading.Thread):
    """Compiles the kernels, or loads them; continues if the thread that waits for it is interrupted."""

    def __init__(self) -> None:
        super().__init__(name="sparsify: compile kernels", daemon=True)
        self.error: BaseException | None = None
        self.said: list[str] = []

    def run(self) -> None:
        try:
            interpreter.enter._cache = KernelCache(self.said)
            interpreter.enter.compile(interpreter.SIGNATURE)
        except BaseException as error:  # noqa: BLE001 - waiting threads raise it
            self.error = error


_starting = threading.Lock()
_running: _Compilation | None = None


def ready() -> Callable[..., bool]:
    """Return `interpreter.enter`, compiled at the first call; problems with cache files give a CacheWarning.

    Exceptions of the compilation are raised; the next call tries again.
    """
    global _running
    if _running is None or _running.is_alive() or _running.error is not None or _running.said:
        with _starting:
            if _running is None or not _running.is_alive() and _running.error is not None:
                _running = _Compilation()
                _running.start()
            running = _running
        running.join()
        if running.error is not None:
            raise running.error
        while running.said:
            warnings.warn(running.said.pop(0), CacheWarning, stacklevel=2)
    enter: Callable[..., bool] = interpreter.enter
    return enter


def _wait_for_no_compilation() -> None:
    """Delay a fork while the compiler's locks are held."""
    if _running is not None and _running is not threading.current_thread():
        _running.join()


def _forget_locks() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_no_compilation, after_in_child=_forget_locks)
