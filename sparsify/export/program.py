"""The folded model as a program of torch.export, with the expected outputs that a written file is checked against."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..calls import Inputs, plain, run, tensors_in
from ..errors import RunError, SparsifyError, one_line
from ..formats.request import ExportRequest
from ..relative_error import relative_error
from ..surgery.conversion.fold import fold
from ..surgery.copies import deep_copy
from .example import Example, example_of

# Relative to the largest output, as everywhere in sparsify; types with fewer bits round each operation more coarsely.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
_COARSE = 2e-2


@dataclass(frozen=True)
class Case:
    """Inputs, the outputs of the masked model in eval mode for them, and the free sizes ("batch=3")."""

    inputs: Inputs
    outputs: tuple[Tensor, ...]
    sizes: str = ""


@dataclass(frozen=True)
class Exported:
    """A folded model as a program in eval mode on the CPU, and the cases that its file is checked against.

    `hint` names a part of the model that is known to compute differently in a program, and a workaround.
    """

    program: ExportedProgram
    cases: tuple[Case, ...]
    example: Example
    hint: str = ""


def export_folded(request: ExportRequest, dtype: torch.dtype | None = None) -> Exported:
    """Return the model of `request`, folded, as a program; floating tensors cast to `dtype` if one is given.

    The dimensions in `dynamic_shapes` may have any size, by default the first of each tensor, the batch, unless
    `batch_size` fixes it. `request` is not changed. Raises SparsifyError, one line, without an example input, for a
    model that does not take it, or not in other sizes, and for one that torch.export does not take.
    """
    masked = deep_copy(request.model).cpu().eval()
    if dtype is not None:
        masked = masked.to(dtype)
    example = example_of(request, masked)
    cases = tuple(_cases(masked, example))
    folded = fold(masked)
    hint = _hint(masked)
    del masked
    return Exported(_program(folded, example, hint), cases, example, hint)


def _cases(model: nn.Module, example: Example) -> Iterator[Case]:
    """Yield calls with the model's outputs: for each free dimension, with sizes other than the traced ones."""
    traced = _traced(example)
    if not traced:
        yield case_of(model, example.inputs)
    for name in traced:
        found, reason = 0, ""
        for size in _others(example, name):
            sizes = {**traced, name: size}
            try:
                case = case_of(model, example.resized(sizes), f"{name}={size}")
            except SparsifyError as error:
                reason = str(error)
                continue
            yield case
            found += 1
            if not example.leads(name):
                break
        if not found:
            case_of(model, example.inputs)  # raises if the size is not the reason
            raise SparsifyError(
                f"{reason} (with another {name} than {example.sizes[name]}): leave it out of dynamic_shapes (--dynamic)"
            )


def _traced(example: Example) -> dict[str, int]:
    # A batch of two, since torch.export treats a size of one as a constant.
    return {name: 2 if example.leads(name) else max(2, size) for name, size in example.sizes.items()}


def _others(example: Example, name: str) -> tuple[int, ...]:
    """Return other sizes to check: both for a batch; for other dimensions the first that the model takes is used."""
    size = _traced(example)[name]
    longer = size + 32 if size >= 64 else 2 * size
    return (1, 3) if example.leads(name) else (longer, size + 1, size // 2, size - 1)


def case_of(model: nn.Module, inputs: Inputs, sizes: str = "") -> Case:
    """Return the inputs with a model's outputs for them; SparsifyError if it does not take them."""
    try:
        with torch.no_grad():
            outputs = run(model, fresh(inputs))
    except Exception as error:
        raise SparsifyError(f"save: the model does not take the example_input: {reason_of(error)}") from error
    return Case(inputs, tuple(tensors_in(plain(outputs))), sizes)


def check_outputs(
    format: str, call: Callable[[Inputs], Sequence[Tensor]], cases: Sequence[Case], hint: str = ""
) -> str:
    """Return, as text, the largest relative error of the outputs against the masked model's.

    Raises RunError if it exceeds 1e-5 (2e-2 for 16-bit types), or if number or shapes of the outputs differ.
    """
    worst = 0.0
    for case in cases:
        where = f" with {case.sizes}" if case.sizes else ""
        try:
            found = tuple(call(case.inputs))
        except Exception as error:  # noqa: BLE001 - any exception means that the file cannot be used
            larger = "" if case.sizes in ("", "batch=1", "batch=3") else "; a larger example_input may free this size"
            raise SparsifyError(
                f"save: {format}: what was made of the model does not run{where}: {reason_of(error)}{hint or larger}"
            ) from error
        if [output.shape for output in found] != [output.shape for output in case.outputs]:
            raise RunError(
                f"save: {format}: its outputs{where} are of other shapes than the model's; nothing was written{hint}"
            )
        for output, wanted in zip(found, case.outputs, strict=True):
            difference = relative_error([output], [wanted])
            if not difference <= _TOLERANCE.get(wanted.dtype, _COARSE):
                raise RunError(
                    f"save: {format}: its outputs differ from the masked model's by {difference:.1e} of the largest; "
                    f"nothing was written{hint}"
                )
            worst = max(worst, difference)
    outputs = f"outputs within {worst:.0e} of the masked model's" if worst else "outputs equal to the masked model's"
    sizes = ", ".join(case.sizes for case in cases if case.sizes)
    return f"{outputs} (with {sizes})" if sizes else outputs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print, log and warn of within the block; their exceptions are enough."""
    before = logging.root.manager.disable
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def reason_of(error: BaseException) -> str:
    """Return an exporter's error in one line, without its advice."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    specialised = [line for line in lines if "specialized it to be a constant" in line]
    text = specialised[0].partition(". If you")[0] if specialised else (lines[0] if lines else type(error).__name__)
    return one_line(text, 240)


def fresh(inputs: Inputs) -> Inputs:
    """Return the same call with copies of its tensors, without the marks that torch.export leaves on them."""
    copied: Inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return copied


def _program(folded: nn.Module, example: Example, hint: str) -> ExportedProgram:
    inputs, names = example.resized(_traced(example)), ", ".join(example.sizes)
    _flatten_signature(folded, example)
    with quiet(), torch.no_grad():
        try:
            given = fresh(inputs)
            shapes = example.dynamic_shapes() if names else None
            program = torch.export.export(folded, given.args, dict(given.kwargs), dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - torch.export raises what it or the model likes
            reason = reason_of(error)
            cause = error
        else:
            return _without_traces(program)
        advice = _workaround(reason)
        if names:
            with contextlib.suppress(Exception):
                given = fresh(inputs)
                torch.export.export(folded, given.args, dict(given.kwargs))
                fixes = "a batch_size fixes it (--batch-size)" if names == "batch" else "dynamic_shapes={} fixes all"
                reason, advice = f"with {names} free ({reason})", f"; {fixes}"
    raise SparsifyError(f"save: torch.export does not take this model: {reason}{hint or advice}") from cause


def _flatten_signature(folded: nn.Module, example: Example) -> None:
    """Give a model a forward with one parameter for each argument, and with plain outputs."""
    forward = folded.forward

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    flattened.__signature__ = inspect.Signature(list(example.parameters))  # type: ignore[attr-defined]
    folded.forward = flattened


def _workaround(reason: str) -> str:
    if any(word in reason for word in ("data-dependent", "guard on", "unbacked", ".item()", "nonzero")):
        return "; it looks at values of tensors: torch.where takes the place of such a branch"
    if "type must be tuple of ints" in reason:  # of the first state, whose size is the first of a packed sequence's
        return "; a packed sequence has lengths that are values: in a program recurrent layers take padded ones"
    return "; format 'sparse' or 'dense' holds its weights for the model's own code"


def _hint(model: nn.Module) -> str:
    """Return a known problem of a model in a program, with a workaround, "" for none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            return (
                f"; {name or 'the encoder'} takes padded batches by torch's fast path of nested tensors, which no "
                "program holds: build it with enable_nested_tensor=False, or set its use_nested_tensor to False"
            )
    return ""


def _without_traces(program: ExportedProgram) -> ExportedProgram:
    """Drop the stack traces of operations, so that a file contains no paths of the user's sources."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program
