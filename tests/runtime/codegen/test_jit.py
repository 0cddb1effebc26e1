"""What the cache of compiled code asks for, and what it does about files that are damaged or cannot be written."""

import ast
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from sparsify.errors import CacheWarning, RunError
from sparsify.runtime.codegen import jit as compiled
from sparsify.runtime.codegen.jit import KERNELS, KernelCache, fingerprint, ready
from sparsify.runtime.kernels import interpreter

SOURCES = sorted(path.name for path in KERNELS.glob("*.py"))


def test_compiled_code_is_made_of_files_of_one_folder() -> None:
    """The fingerprint covers a folder: a kernel that took in code from elsewhere would not be compiled anew."""
    for path in KERNELS.glob("*.py"):
        text = path.read_text()
        if "njit" not in text and "@intrinsic" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.ImportFrom) or node.level < 2 or node.module == "errors"


@pytest.mark.parametrize("name", SOURCES)
def test_the_fingerprint_changes_with_each_of_them(name: str, tmp_path: Path) -> None:
    for source in SOURCES:
        shutil.copy(KERNELS / source, tmp_path)
    assert fingerprint(tmp_path) == fingerprint()
    with (tmp_path / name).open("a") as file:
        file.write("# more\n")
    assert fingerprint(tmp_path) != fingerprint()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def compiled_anew() -> tuple[bool, list[str]]:
    """Compile a function, or load it; return whether it was compiled, and what was said."""
    said: list[str] = []

    def twice(x: int) -> int:
        return 2 * x

    function: Any = numba.njit(twice)
    function._cache = KernelCache(said)
    function.compile(numba.int64(numba.int64))
    assert function(21) == 42
    return not function.stats.cache_hits, said


def only(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "one bit": flipped,
    "garbage": lambda content: b"\x80\x04garbage" * 999,
    "zeros": lambda content: bytes(len(content)),
    "another file's head": lambda content: b"\x93NUMPY" + content[6:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_said_once_and_replaced(name: str, folder: Path) -> None:
    assert compiled_anew() == (True, [])
    assert compiled_anew() == (False, [])
    file = only(folder)
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    new, [line] = compiled_anew()
    assert new and line.startswith(f"{file}: the kernels kept there are damaged (") and "\n" not in line
    assert compiled_anew() == (False, []) and only(folder) == file


def test_code_of_other_sources_is_replaced_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_anew()
    monkeypatch.setattr(compiled, "fingerprint", lambda: bytes(32))
    assert [compiled_anew() for _ in range(2)] == [(True, []), (False, [])]


def test_other_widths_and_versions_have_files_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_anew()
    monkeypatch.setattr(compiled, "WIDTH", 3)
    assert compiled_anew() == (True, [])
    monkeypatch.setattr(numba, "__version__", "0.1")
    assert compiled_anew() == (True, []) and len(list(folder.iterdir())) == 3


def test_a_folder_that_cannot_be_made_is_said(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    for _ in range(2):
        new, [line] = compiled_anew()
        assert new and line.startswith("the compiled kernels cannot be kept") and str(folder) in line


def test_a_folder_in_place_of_the_file_is_said(folder: Path) -> None:
    compiled_anew()
    file = only(folder)
    file.unlink()
    file.mkdir()
    new, said = compiled_anew()
    assert new and "cannot be read" in said[0] and "cannot be kept" in said[1]


def test_a_full_disk_leaves_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: Any) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as during:
        during.setattr(os, "write", full)
        new, [line] = compiled_anew()
    assert new and "no space" in line.lower() and not list(folder.iterdir())
    assert compiled_anew() == (True, [])


def test_without_a_folder_of_its_own_the_next_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiled, "KERNELS", tmp_path / "package")
    (tmp_path / "package").write_text("not to be written")
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr(compiled, "fingerprint", lambda: bytes(32))
    assert [compiled_anew() for _ in range(2)] == [(True, []), (False, [])]
    assert only(tmp_path / "user").suffix == ".nbc"


class Compiles:
    """A dispatcher that fails as often as told."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self._cache: Any = None

    def compile(self, signature: object) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise RunError("no compiler")
        self._cache.said.append("damaged")


def test_a_compilation_that_failed_is_tried_again_and_what_is_said_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatcher = Compiles(2)
    monkeypatch.setattr(interpreter, "enter", dispatcher)
    monkeypatch.setattr(compiled, "_running", None)
    for _ in range(2):
        with pytest.raises(RunError, match="no compiler"):
            ready()
    with pytest.warns(CacheWarning, match="^damaged$"):
        assert ready() is dispatcher  # type: ignore[comparison-overlap]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ready() is dispatcher  # type: ignore[comparison-overlap]


def test_several_threads_wait_for_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on = [], threading.Event()

    class Slow:
        def compile(self, signature: object) -> None:
            begun.append(signature)
            assert goes_on.wait(60)

    monkeypatch.setattr(interpreter, "enter", Slow())
    monkeypatch.setattr(compiled, "_running", None)
    callers = [threading.Thread(target=ready) for _ in range(4)]
    for caller in callers:
        caller.start()
    goes_on.set()
    for caller in callers:
        caller.join()
    assert len(begun) == 1
