"""A sparse file with the fastest strategy for its model, so that an engine built from it needs no tuning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import SparsifyError
from ..formats.model.write import write_sparse
from ..formats.request import ExportRequest, ExportResult
from ..preserve import torch_threads
from ..quantities import count
from ..runtime.compile import compile, thread_count
from ..runtime.tuning.file_record import entry
from ..surgery.conversion.fold import fold
from .example import example_of
from .program import case_of


def write_engine(request: ExportRequest) -> ExportResult:
    """Write the file of `write_sparse` with the strategy that is the fastest here for inputs like the example.

    The strategy is found by timing, as in `compile`, or taken from the cache. Raises SparsifyError for a model that
    does not take the example, and for inputs that are not float32, which the engine leaves to PyTorch.
    """
    threads = thread_count(request.threads, "save")
    plain = fold(request.model).cpu().eval()
    example = example_of(request, plain).inputs
    case_of(plain, example)
    with torch_threads(threads):
        engine = compile(plain, example, threads=threads)
    plainly = not example.kwargs and all(isinstance(x, Tensor) and x.dtype == torch.float32 for x in example.args)
    if not engine.strategies or not plainly:
        raise SparsifyError("save: engine takes models whose inputs are float32 tensors; this one's are others")
    [(shapes, strategy)] = engine.strategies.items()
    about = replace(request.metadata, format="sparse", engine=entry(shapes, threads, strategy))
    size = write_sparse(replace(request, metadata=about)).size
    inputs = ", ".join("x".join(map(str, shape)) for shape in shapes)
    on = f"{count(threads, 'thread')} of this machine"
    return ExportResult(size, (f"tuned for {inputs} on {on}: {strategy}",))
