"""The results of `sparsify bench` for a run, stored in the run's folder. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import SparsifyError
from ..formats.io.atomic import atomic_write

BENCH = "bench.json"


@dataclass(frozen=True)
class Timing:
    """The seconds of one forward pass in one runtime: median, lower and upper quartile."""

    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchResult:
    """One result of `sparsify bench`: input shape, threads, processor, versions, date, and runtimes' timings."""

    shape: tuple[int, ...]
    threads: int
    processor: str
    versions: Mapping[str, str]
    date: str
    timings: tuple[Timing, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """The key under which a later result replaces this one: (shape, threads, processor)."""
        return (self.shape, self.threads, self.processor)


def read_bench_results(folder: Path) -> tuple[BenchResult, ...]:
    """Return the results in a run's folder, () if it was never timed; raises SparsifyError for a damaged file."""
    path = folder / BENCH
    if not path.exists():
        return ()
    try:
        return tuple(
            BenchResult(
                **{**one, "shape": tuple(one["shape"]), "timings": tuple(Timing(**timing) for timing in one["timings"])}
            )
            for one in json.loads(path.read_bytes())
        )
    except OSError as error:
        raise SparsifyError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise SparsifyError(f"{path}: damaged: not what sparsify bench writes; remove it and time again") from None


def add_bench_result(folder: Path, result: BenchResult) -> None:
    """Add a result to a run's folder; it replaces an older one of the same input shape, threads and processor."""
    others = [one for one in read_bench_results(folder) if one.key != result.key]
    text = json.dumps([asdict(one) for one in [*others, result]], indent=1)
    atomic_write(folder / BENCH, text.encode() + b"\n")
