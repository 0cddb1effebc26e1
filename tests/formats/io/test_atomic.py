"""A file is written whole or not at all, and what went wrong is one line."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparsify.errors import RunError, SparsifyError
from sparsify.formats.io.atomic import atomic_write, check_writable
from sparsify.formats.io.atomic_folder import check_folder


def test_chunks_of_any_kind_are_written_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    numbers = np.array([[1, 2], [3, 4]], dtype="<u2")
    empty = np.zeros((0, 3), dtype="<f4")
    assert atomic_write(path, [b"ab", memoryview(b"cd"), numbers, empty, bytearray(b"e")]) == 13
    assert path.read_bytes() == b"abcd" + bytes([1, 0, 2, 0, 3, 0, 4, 0]) + b"e"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_bytes_are_one_chunk_and_replace_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old and longer")
    assert atomic_write(str(path), b"new") == 3
    assert path.read_bytes() == b"new"
    assert atomic_write(path, b"") == 0
    assert path.read_bytes() == b""


def test_the_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    usual, written, private = tmp_path / "usual", tmp_path / "written", tmp_path / "private"
    usual.write_bytes(b"")
    atomic_write(written, b"x")
    assert written.stat().st_mode == usual.stat().st_mode
    private.touch(mode=0o600)
    atomic_write(private, b"x")
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "real")
    atomic_write(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"x"


class Interruption(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(errno.ENOSPC, "mine"), Interruption()])
def test_an_error_of_the_iterable_passes_unchanged_and_leaves_the_old_file(
    tmp_path: Path, error: BaseException
) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise error

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        atomic_write(path, chunks())
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, RunError, 1),
        (errno.EDQUOT, RunError, 1),
        (errno.EIO, RunError, 1),
        (errno.EACCES, SparsifyError, 2),
    ],
)
def test_a_failing_call_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[SparsifyError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind) as caught:
        atomic_write(path, [b"new"])
    monkeypatch.undo()
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == code
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: real(descriptor, view[:3]))
    assert atomic_write(tmp_path / "a.bin", b"0123456789") == 10
    monkeypatch.undo()
    assert (tmp_path / "a.bin").read_bytes() == b"0123456789"


def test_a_file_size_limit_of_the_system_is_no_space_left(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    script = (
        "import sys\nfrom sparsify.errors import RunError\nfrom sparsify.formats.io.atomic import atomic_write\n"
        "try:\n    atomic_write(sys.argv[1], [bytes(4096)] * 10)\nexcept RunError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.returncode == 1
    assert done.stderr == f"cannot write {path}: no space left (File too large); nothing was written\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match=rf"there is no folder {tmp_path}/missing$"):
        atomic_write(tmp_path / "missing" / "a.bin", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(SparsifyError, match="Not a directory") as caught:
        atomic_write(tmp_path / "file" / "a.bin", b"x")
    assert caught.value.exit_code == 2


def test_a_folder_a_device_and_a_pipe_are_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="it exists and is not a file"):
        atomic_write(tmp_path, b"x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SparsifyError, match="it exists and is not a file"):
        atomic_write(tmp_path / "pipe", b"x")
    assert os.listdir(tmp_path) == ["pipe"]
    with pytest.raises(SparsifyError, match="it exists and is not a file"):
        atomic_write("/dev/full", b"x")


def test_links_in_a_loop_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for check in (check_writable, check_folder):
        with pytest.raises(SparsifyError, match="^cannot write .*/a: Too many levels of symbolic links"):
            check(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SparsifyError, match=f"not allowed to write in {tmp_path}"):
        atomic_write(tmp_path / "a.bin", b"x")
