"""A model's computation as torch.export sees it, folded, with what a written file has to give back."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import RunError, SparsifyError
from ..formats.request import ExportRequest
from ..surgery.conversion.fold import fold
from ..surgery.copies import deep_copy

Inputs: TypeAlias = tuple[Any, ...]
# Of the largest output, as everywhere in sparsify; types of fewer bits round each operation more coarsely.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
_COARSE = 2e-2


@dataclass(frozen=True)
class Case:
    """Inputs, and the outputs of the masked model in evaluation mode for them, flat."""

    inputs: Inputs
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Exported:
    """A folded model as a program in evaluation mode on the CPU, and the cases that a file of it is checked by."""

    program: ExportedProgram
    cases: tuple[Case, ...]
    batch: str


def export_folded(request: ExportRequest, dtype: torch.dtype | None = None) -> Exported:
    """Return the model of `request`, folded, as a program; floating tensors cast to `dtype` if one is given.

    The first dimension of the inputs, the batch, may be of any size, unless `batch_size` fixes it. `request` is not
    changed. Raises SparsifyError, one line, without an example input, for a model that does not take it and for one
    that torch.export does not take.
    """
    masked = deep_copy(request.model).cpu().eval()
    if dtype is not None:
        masked = masked.to(dtype)
    example = example_of(request, masked)
    fixed = request.batch_size
    # Two, since torch.export takes a batch of one for a constant; and other sizes than that to check by.
    sizes = (1, 3) if fixed is None else (fixed,)
    cases = tuple(case_of(masked, of_size(example, size)) for size in sizes)
    folded = fold(masked)
    del masked
    if fixed is not None:
        return Exported(_program(folded, of_size(example, fixed), False), cases, f"a batch of {fixed}")
    return Exported(_program(folded, of_size(example, 2), True), cases, "batches of any size")


def check_outputs(format: str, run: Callable[[Inputs], Sequence[Tensor]], cases: Sequence[Case]) -> str:
    """Return how far the outputs are from the masked model's at most, as a fraction of the largest of them, in words.

    Raises RunError where it is more than 1e-5 (2e-2 for types of 16 bits), or the outputs are others than the model's.
    """
    worst = 0.0
    for case in cases:
        try:
            found = tuple(run(case.inputs))
        except Exception as error:  # noqa: BLE001 - whatever the other side raises, the file is of no use
            batch = len(pytree.tree_leaves(case.inputs)[0])
            raise SparsifyError(
                f"save: {format}: what was made of the model does not run with a batch of {batch}: {reason_of(error)}"
            ) from error
        if [output.shape for output in found] != [output.shape for output in case.outputs]:
            raise RunError(f"save: {format}: its outputs are of other shapes than the model's; nothing was written")
        for output, wanted in zip(found, case.outputs, strict=True):
            difference = _difference(output, wanted)
            if not difference <= _TOLERANCE.get(wanted.dtype, _COARSE):
                raise RunError(
                    f"save: {format}: its outputs differ from the masked model's by {difference:.1e} of the largest; "
                    "nothing was written"
                )
            worst = max(worst, difference)
    return f"outputs within {worst:.0e} of the masked model's" if worst else "outputs equal to the masked model's"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what exporters print, log and warn of; their errors say what matters."""
    before = logging.root.manager.disable
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def reason_of(error: BaseException, most: int = 240) -> str:
    """Return what an exporter's error says, in one line, without its advice."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    specialised = [line for line in lines if "specialized it to be a constant" in line]
    text = specialised[0].partition(". If you")[0] if specialised else (lines[0] if lines else type(error).__name__)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _program(folded: nn.Module, inputs: Inputs, dynamic: bool) -> ExportedProgram:
    shapes = pytree.tree_map(_batch_varies, inputs) if dynamic else None
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(folded, _fresh(inputs), dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - torch.export raises what it or the model likes
            reason = reason_of(error)
            cause = error
        else:
            return _without_traces(program)
        if dynamic:
            with contextlib.suppress(Exception):
                torch.export.export(folded, _fresh(inputs))
                reason = f"with a batch that varies ({reason}); a batch_size would fix it (--batch-size)"
    raise SparsifyError(f"save: torch.export does not take this model: {reason}") from cause


def _without_traces(program: ExportedProgram) -> ExportedProgram:
    """Drop where in the user's sources each operation came from: other people's paths are nothing for a file."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def _batch_varies(value: Any) -> Any:
    return {0: Dim.DYNAMIC} if isinstance(value, Tensor) and value.dim() else None


def _fresh(inputs: Inputs) -> Inputs:
    # torch.export marks the tensors that it was given, and would find the marks again.
    copied: Inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return copied


def example_of(request: ExportRequest, model: nn.Module) -> Inputs:
    """Return the example as positional arguments on the CPU, in the model's type; SparsifyError without a batch."""
    given = request.example_input
    if given is None:
        raise SparsifyError(f"save: {request.metadata.format} needs an example_input to run the model on")
    inputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    floating = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]

    def fitting(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.to(floating[0]) if floating and tensor.is_floating_point() else tensor

    fitted: Inputs = pytree.tree_map_only(Tensor, fitting, inputs)
    tensors = [leaf for leaf in pytree.tree_leaves(fitted) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or not all(len(tensor) == len(tensors[0]) > 0 for tensor in tensors):
        raise SparsifyError("save: the example_input must be tensors of one batch size, their first dimension")
    return fitted


def of_size(inputs: Inputs, size: int) -> Inputs:
    """Return a batch of `size` made of the example's rows, floating ones a little different each time."""

    def rows(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        taken = tensor[torch.arange(size) % len(tensor)]
        if taken.is_floating_point():
            factors = 1 - torch.arange(size, dtype=taken.dtype) / (4 * size)
            taken = taken * factors.reshape(-1, *[1] * (taken.dim() - 1))
        return taken

    batch: Inputs = pytree.tree_map_only(Tensor, rows, inputs)
    return batch


def case_of(model: nn.Module, inputs: Inputs) -> Case:
    """Return the inputs with a model's outputs for them; SparsifyError if it does not take them."""
    try:
        with torch.no_grad():
            outputs = model(*_fresh(inputs))
    except Exception as error:
        raise SparsifyError(f"save: the model does not take the example_input: {reason_of(error)}") from error
    return Case(inputs, tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)))


def _difference(found: Tensor, wanted: Tensor) -> float:
    if not wanted.numel() or torch.equal(found, wanted):
        return 0.0
    if not wanted.is_floating_point():
        return float("inf")
    found, wanted = found.double(), wanted.double()
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    if same.all():
        return 0.0
    largest = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
    difference = (found - wanted)[~same].abs().max().item()
    return difference / largest if largest else float("inf")
