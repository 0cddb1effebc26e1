"""What `sparsify bench` stores in a run's folder for reports, and the model without its dead channels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from statistics import quantiles
from typing import TYPE_CHECKING

from sparsify.errors import SparsifyError
from sparsify.hardware import processor
from sparsify.report.bench_results import BENCH, BenchResult, Timing, add_bench_result
from sparsify.training.folder.run_folder import RECIPE

if TYPE_CHECKING:
    from torch import Tensor, nn

_VERSIONS = {"sparsify": "sparsify-torch", "torch": "torch", "onnxruntime": "onnxruntime"}


def keep(source: str, shape: Sequence[int], threads: int, seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Store the timings of a run in its folder; return a line that says so, or why not, and none for other sources."""
    folder = Path(source)
    if not (folder / RECIPE).is_file():
        return []
    names = [name for name, package in _VERSIONS.items() if find_spec(package.removesuffix("-torch")) is not None]
    result = BenchResult(
        shape=tuple(shape),
        threads=threads,
        processor=processor(),
        versions={name: version(_VERSIONS[name]) for name in names},
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
        timings=tuple(
            Timing(name, middle, low, high)
            for name, own in seconds.items()
            for low, middle, high in [quantiles(own, n=4, method="inclusive")]
        ),
    )
    try:
        add_bench_result(folder, result)
    except SparsifyError as error:
        return [f"not kept for reports: {error}"]
    return [f"{folder / BENCH}: kept for sparsify report {quote(str(folder))}"]


def without_dead(path: str, x: Tensor) -> tuple[nn.Module | None, str]:
    """Return a file's model without its dead channels and "", or None and the reason."""
    import sparsify

    model = sparsify.load(path)
    if not sparsify.get_masks(model):
        return None, "no masks"
    try:
        report = sparsify.shrink(model.eval(), x[:1])
    except SparsifyError as error:
        return None, str(error)
    return (report.model.eval(), "") if report.removed else (None, "no channel is dead")
