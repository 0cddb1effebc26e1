"""Work on many models, each in its own process with limits of memory and time."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .checks import Row, in_one_line

Work = Callable[[], Row]


@dataclass
class Child:
    """A process that works on one model, and the pipe for its row."""

    model: str
    pid: int
    pipe: int
    started: float
    received: bytes = b""


def start(model: str, work: Work, memory: int) -> Child:
    """Fork a process that does `work`, with at most `memory` more bytes mapped than now, and sends its row."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(model, pid, reader, time.monotonic())
    os.close(reader)
    row: Row
    try:
        warnings.simplefilter("ignore")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
        row = work()
    except BaseException as error:  # noqa: BLE001 - the parent wants a row whatever happens
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        row = {"verdict": "error", "problems": [f"{in_one_line(error)} ({where})"]}
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    with os.fdopen(writer, "w") as pipe:
        json.dump(row, pipe)
    os._exit(0)


def finish(child: Child) -> Row:
    """Return the row of a child that has closed its pipe."""
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    if child.received:
        row: Row = json.loads(child.received)
    else:
        row = {"verdict": "error", "problems": [f"its process ended with status {status} and no result"]}
    row["seconds"] = round(time.monotonic() - child.started, 1)
    return row


def over(child: Child, limit: float) -> bool:
    """Read what a child has sent and return whether it is done; one that takes longer than `limit` is killed."""
    if select.select([child.pipe], [], [], 0)[0]:
        data = os.read(child.pipe, 1 << 20)
        child.received += data
        return not data
    if time.monotonic() - child.started > limit:
        os.kill(child.pid, signal.SIGKILL)
        child.received = json.dumps({"verdict": "error", "problems": [f"not finished in {limit:.0f} s"]}).encode()
        return True
    return False


@contextmanager
def _frozen() -> Iterator[None]:
    """Exempt all objects from collection, which in forked processes would copy the memory that they share."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def work_through(
    models: list[str],
    work: Callable[[str], Work],
    rest: Callable[[str, Row], Work | None],
    *,
    jobs: int,
    memory: float,
    seconds: float,
) -> Iterator[tuple[str, Row]]:
    """Yield (model, row) as they finish, `jobs` at once, each within `memory` GB and `seconds`.

    `rest` may return more work for a row, whose row is then yielded instead.
    """
    with _frozen():
        waiting = [(model, work(model), False) for model in reversed(models)]
        running: list[tuple[Child, bool]] = []
        while waiting or running:
            while waiting and len(running) < jobs:
                model, todo, again = waiting.pop()
                running.append((start(model, todo, int(memory * 2**30)), again))
            for child, again in list(running):
                if not over(child, seconds):
                    continue
                running.remove((child, again))
                row = finish(child)
                second = None if again else rest(child.model, row)
                if second is None:
                    yield child.model, row
                else:
                    waiting.append((child.model, second, True))
            time.sleep(0.02)
