"""The caches of kernels and of tuning between processes: at once, damaged, full, and where nothing can be written.

Each process compiles a function and keeps strategies, as an engine does; it prints what was said and what came of it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="limits of files are POSIX's")]

PROGRAM = """
import json, resource, sys, time, warnings
from pathlib import Path
import numba
from sparsify.runtime.codegen.jit import KernelCache
from sparsify.runtime.tuning import cache
from sparsify.runtime.tuning.search import Strategy

limit, barrier, count, own = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
(barrier / own).touch()
while len(list(barrier.iterdir())) < count:
    time.sleep(0.01)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
said = []
def twice(x):
    return 2 * x
function = numba.njit(twice)
function._cache = KernelCache(said)
function.compile(numba.int64(numba.int64))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for number in range(30):
        cache.keep(f"{own}-{number}", Strategy("chunks", 1 + number, frozenset()))
    last = cache.recall(f"{own}-29")
said += [str(one.message) for one in warned]
print(json.dumps({
    "said": said,
    "right": function(21) == 42 and (last is None or last.images == 30),
    "compiled": not function.stats.cache_hits,
}))
"""


def start(folder: Path, count: int, *, limit: int = 0) -> list[dict[str, Any]]:
    """Run `count` processes at once with their caches in `folder`; return what they print."""
    barrier = folder.parent / f"barrier-{time.monotonic_ns()}"
    barrier.mkdir()
    own = {"SPARSIFY_CACHE": str(folder / "tuning"), "NUMBA_CACHE_DIR": str(folder / "kernels"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(limit), str(barrier), str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(index)], env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for index in range(count)
    ]
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    assert all(one["right"] for one in found), found
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the caches that two processes filled at the same time."""
    folder = tmp_path_factory.mktemp("caches") / "both"
    folder.mkdir()
    found = start(folder, 2)
    assert [one["said"] for one in found] == [[], []]
    assert any(one["compiled"] for one in found)
    return folder


def files(folder: Path) -> tuple[Path, Path]:
    [kernels] = (folder / "kernels").iterdir()
    [tuning] = (folder / "tuning").iterdir()
    return kernels, tuning


def test_two_processes_that_fill_the_caches_at_once_leave_sound_ones(filled: Path) -> None:
    kernels, tuning = files(filled)
    assert kernels.suffix == ".nbc" and isinstance(json.loads(tuning.read_text()), dict)
    assert start(filled, 1) == [{"said": [], "right": True, "compiled": False}]


def test_damaged_caches_are_a_line_each_and_are_mended_by_processes_at_once(filled: Path) -> None:
    for file in files(filled):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    found = start(filled, 2)
    for one in found:
        said = one["said"]
        assert len(said) <= 2 and all("damaged" in line for line in said), said
    assert any(one["said"] for one in found)
    assert start(filled, 1) == [{"said": [], "right": True, "compiled": False}]


def test_caches_that_take_nothing_are_a_line_each(tmp_path: Path) -> None:
    full, barred = tmp_path / "full", tmp_path / "barred"
    full.mkdir()
    barred.write_text("a file where folders should be")
    # A disk that is full: no file gets longer than a few bytes.
    for folder, limit, reason in ((full, 10, "no space left"), (barred, 0, "Not a directory")):
        [one] = start(folder, 1, limit=limit)
        said = one["said"]
        assert len(said) == 2 and one["compiled"], said
        assert "compiled kernels cannot be kept" in " ".join(said) and "tuning found cannot be kept" in " ".join(said)
        assert all(reason in line for line in said), said
    assert not [path for path in full.rglob("*") if path.is_file()]
