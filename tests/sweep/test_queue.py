import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsify.errors import SparsifyError
from sparsify.sweep.queue import Job, work

ROOT = Path(__file__).parents[2]


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def until(done: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_jobs_run_side_by_side_and_failures_are_told(tmp_path: Path) -> None:
    wait = "import pathlib, time\npathlib.Path({me!r}).touch()\n"
    wait += "while not pathlib.Path({other!r}).exists(): time.sleep(0.01)"
    one, other = str(tmp_path / "1"), str(tmp_path / "2")
    jobs = [
        job(tmp_path, "one", wait.format(me=one, other=other)),
        job(tmp_path, "other", wait.format(me=other, other=one)),
        job(tmp_path, "bad", "import sys; print('first'); print('the reason'); sys.exit(3)"),
        job(tmp_path, "empty", "pass"),
    ]
    said: list[str] = []
    failed = work(
        jobs,
        tmp_path / "lock",
        at_once=2,
        finished=lambda one: None if one.name == "empty" else "well",
        say=said.append,
    )
    assert [one.name for one in failed] == ["bad", "empty"]
    assert any("FAILED bad (exit 3): the reason; see" in line for line in said)
    assert any("FAILED empty (exit 0): nothing in its log" in line for line in said)
    assert sum("finished" in line and line.endswith("well") for line in said) == 2


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    assert (
        work([job(tmp_path, "a", code)], tmp_path / "lock", threads=3, finished=lambda _: "", say=lambda _: None) == []
    )
    assert (tmp_path / "a.log").read_text() == "3 3\n"


def test_a_second_queue_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SparsifyError, match="another queue"):
            work([], tmp_path / "lock", finished=lambda _: "")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SparsifyError, match="cannot be written"):
        work([], tmp_path / "file" / "lock", finished=lambda _: "")


def test_a_queue_that_is_stopped_lets_its_jobs_end_well(tmp_path: Path) -> None:
    asked = "import signal, sys, time, pathlib\n"
    asked += (
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'saved')!r}).touch(), sys.exit(0)))\n"
    )
    asked += f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)"

    class Stop(Exception):
        pass

    def say(line: str) -> None:
        until((tmp_path / "ready").exists)
        raise Stop

    with pytest.raises(Stop):
        work([job(tmp_path, "a", asked)], tmp_path / "lock", finished=lambda _: "", say=say)
    assert (tmp_path / "saved").exists()


def test_a_worker_ends_when_its_queue_is_killed(tmp_path: Path) -> None:
    worker = "from sparsify.sweep.worker import _end_with_the_queue as end; import os, pathlib, time; end(); "
    worker += f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(120)"
    queue = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}]).wait()"
    killed = subprocess.Popen([sys.executable, "-c", queue], cwd=ROOT, start_new_session=True)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    pid = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"

    until(gone)
