"""compile(): build an engine from a model or a file."""

from __future__ import annotations

import logging
import os
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import nn

from ..arguments import PATH, takes
from ..calls import explained, inputs_of, run
from ..errors import SparsifyError
from ..formats.model.load import load
from ..hardware import MOST_THREADS
from ..surgery.conversion.fold import fold
from .cuda import for_cuda, on_cuda
from .engine import Engine
from .tuning.file_record import Stored, read

_LOG = logging.getLogger("sparsify")


@takes(source=(nn.Module, *PATH), model=(nn.Module, NoneType), threads=(Integral, NoneType), tune=bool)
def compile(
    source: nn.Module | str | os.PathLike[str],
    example_input: Any = None,
    *,
    model: nn.Module | None = None,
    threads: int | None = None,
    tune: bool = True,
) -> Engine:
    """Return an engine for a model (masked, folded, shrunk or any other) or a file, run once on `example_input`.

    - `source`: the model, or any argument of `load`: a file's path, a run or "hf:OWNER/NAME".
    - `example_input`: a tensor, a tuple of positional arguments, a dict of keyword arguments or `sparsify.Inputs`;
      optional for a file that stores its model's input shape.
    - `model`: for a file that does not name its model, the one to load it into, in place.
    - `threads`: by default torch's number.
    - `tune`: time every execution strategy for the example's shape, PyTorch's own among them, and use the fastest
      (autotuning). The result is cached for the next engine of the same weights, in tuning.json of the folder
      SPARSIFY_CACHE (by default sparsify in the user's cache folder). Without it nothing is timed, and kernels are used
      wherever they exist.

    A file of `save(format="engine")` stores the strategy for its shape, so that nothing is timed. On another machine,
    with other versions or another number of threads it is tuned again, and the log and `print(engine)` say so.

    Every strategy is first compared with the model's outputs and rejected if they differ by more than 1e-5 of the
    largest. A strategy or a kernel that fails gives an EngineWarning and a line in `print(engine)`. PyTorch runs a
    model on CUDA, with semi-structured kernels for linear weights that are 2:4 sparse and float16 or bfloat16
    (`to_semi_structured`), all others dense; `print(engine)` lists them.
    Raises SparsifyError for a model whose parameters have no values yet, for a number of threads that no machine has,
    for anything that `load` refuses, and if an example is needed.
    """
    count = thread_count(threads, "compile")
    if isinstance(source, nn.Module):
        if model is not None:
            raise SparsifyError("compile: model= is for a file to be loaded into; here a model is given in its place")
        if example_input is None:
            raise SparsifyError("compile: a model needs an example_input to be run on")
        return _started(source, example_input, count, tune)
    file = read(source, count)
    loaded = load(file.path, model, fold=True)
    return _started(loaded, file.example(loaded) if example_input is None else example_input, count, tune, file)


def thread_count(given: int | None, where: str) -> int:
    """Return a number of threads, torch's for None. Raises SparsifyError for one that no machine has."""
    count = torch.get_num_threads() if given is None else given
    if not 1 <= count <= MOST_THREADS:
        raise SparsifyError(f"{where}: threads: {count} is given; it takes 1 to {MOST_THREADS}")
    return count


def _started(model: nn.Module, example_input: Any, threads: int, tune: bool, file: Stored | None = None) -> Engine:
    """Return the engine after its first run."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise SparsifyError("compile: the model's parameters have no values yet (meta device)")
    inputs = inputs_of(example_input, "compile", model)
    if on_cuda(model):
        folded, note = for_cuda(model, inputs)
        engine = Engine(folded, threads, tune)
        engine.note, engine.uses_kernels = note, False
        run(engine, inputs)
        return engine
    with torch.no_grad():  # else PyTorch's copy of a scripted module has parameters that are no leaves
        folded = fold(model).eval()
    engine = Engine(folded, threads, tune)
    if file is not None and file.strategy is not None:
        engine.known[file.shapes] = file.strategy
    with explained(inputs, "compile"):
        run(engine, inputs)
    if file is not None:
        wrong = file.strategy is not None and engine.strategies.get(file.shapes, file.strategy) != file.strategy
        unfit = "it does not give the model's outputs" if wrong else file.unfit
        if unfit:
            engine.note = f"{file.path}: its strategy is not used: {unfit}"
            _LOG.warning("compile: %s", engine.note)
    return engine
