"""Recording: the tensor operations of one forward pass, in order, which the channel analyses work on.

The model runs in eval mode, and every operation that reaches PyTorch's dispatcher is recorded. At that level, below
modules and functions, branches are resolved, composite functions are decomposed into about a hundred basic operations,
and models that cannot be traced symbolically are recorded like any other.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from ...errors import SparsifyError
from ..module_walk import named_modules
from ..side_effects import changed_buffers, unchanged
from ..tracing.announced import announced_as_traced
from ..tracing.bytecode_scan import is_torch, mentions_training
from .context import addable_biases, eval_mode, whole_attentions
from .op_recorder import OpRecorder
from .ops import GRADIENTS, Recording, Value
from .second_pass import KnownOps, ModuleCalls
from .selected import CountWatch
from .shape_only import ValuesNeededError


def record(model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None = None) -> Recording:
    """Return the operations of one call of `model` in eval mode; `example_input` is as in `inputs_of`.

    `results`, if given, receives copies of every operation's results. Otherwise activations are computed only if the
    forward reads their values. A forward that branches on values is recorded again as under torch.export, and that
    recording is returned if it branches in fewer modules and reads the same parameters. The model is not changed.
    Raises SparsifyError for tensors of the model that hold no values or were made in inference mode, and whatever its
    forward raises.
    """
    _check_tensors(model)
    found = _recorded(model, example_input, results)
    if not found.branches:
        return found
    again: list[tuple[Tensor, ...]] | None = None if results is None else []
    try:
        with announced_as_traced():
            traced = _recorded(model, example_input, again)
    except Exception:  # noqa: BLE001 - forwards that cannot be traced may raise anything
        return found
    if not (_paths(traced) < _paths(found) and _read(traced) == _read(found)):
        return found
    if results is not None:
        results[:] = again or []
    return traced


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise SparsifyError(f"{name} is on the meta device: an analysis of channels reads the values it lacks")
        if tensor.is_inference() and isinstance(tensor, nn.Parameter):
            raise SparsifyError(f"{name} was made in inference mode, in which no channels are seen: copy it outside")


def _paths(recording: Recording) -> set[str]:
    return {path for path, *_ in recording.branches}


def _read(recording: Recording) -> set[str]:
    """Return the names of the model's tensors that operations read."""
    return {name for op in recording.ops for value in op.inputs for name in value.names}


def _recorded(model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None) -> Recording:
    if results is None:
        try:
            return _record(model, example_input, None, computed=False)
        except Exception:  # noqa: BLE001 - the model's own code, or an operation, may raise anything on zeros
            pass
    return _record(model, example_input, results, computed=True)


def _record(
    model: nn.Module, example_input: Any, results: list[tuple[Tensor, ...]] | None, *, computed: bool
) -> Recording:
    with unchanged(model), changed_buffers(model, []), eval_mode(model):
        recorder = OpRecorder(model, results, computed=computed)
        modal = modules_that_ask_for_the_mode(model)
        calls = ModuleCalls(recorder) if modal and not computed else None
        with calls or nullcontext():
            outputs = recorder.run(model, example_input)
        count, problem = len(recorder.ops), ""
        idle = recorder.idle_layers(model)
        if recorder.asking:
            outputs += _run_with_gradients(recorder, model, example_input)
        start = len(recorder.ops)
        if idle or modal:
            recorder.known = KnownOps(recorder.ops)
            more, problem = _run_in_training(recorder, model, example_input, idle, modal, calls)
            if modal or len(recorder.idle_layers(model)) < len(idle):
                outputs += more
            else:
                del recorder.ops[start:]
            if recorder.asking:  # what it does with gradients may depend on the mode
                outputs += _run_with_gradients(recorder, model, example_input)
        idle = recorder.idle_layers(model) if idle else []
        if recorder.counts and results is None and idle:
            _note_asked_counts(recorder, model, example_input, idle)
    return Recording(
        tuple(recorder.ops),
        tuple(outputs),
        recorder.state,
        addable_biases(model),
        whole_attentions(model),
        eval_count=count,
        problems=(problem,) if problem else (),
        branches=tuple(recorder.branches),
        in_objects=frozenset(recorder.in_objects),
        idle=tuple(idle),
    )


def _run_in_training(
    recorder: OpRecorder,
    model: nn.Module,
    example_input: Any,
    idle: list[str],
    modal: list[str],
    calls: ModuleCalls | None,
) -> tuple[list[Value], str]:
    """Run a model again with the modules around `idle` layers, and the `modal` ones, in train mode.

    Auxiliary heads run, or are returned, only in that mode. Layers, including dropout and norms, stay in eval mode.
    Returns the outputs, and the problem or "".
    """
    around = {path.rpartition(".")[0] for path in idle} | {*modal}
    for path, module in named_modules(model):
        if any(path == outer or not path or outer.startswith(f"{path}.") for outer in around):
            module.training = True
    if calls is not None:
        calls.answer(model)
    try:
        return recorder.run(model, example_input), ""
    except Exception as error:
        if not recorder.computed:
            raise
        if not idle:
            return [], ""  # for example, a forward that needs targets: its losses are not outputs
        where = f"{idle[0]}: it runs neither in eval mode nor, with this input, in train mode"
        return [], f"{where} ({type(error).__name__}), and is not cut"


def _run_with_gradients(recorder: OpRecorder, model: nn.Module, example_input: Any) -> list[Value]:
    """Run a model again with gradients on, since its forward checks for them; return its outputs.

    If that run fails, note a branch for each module that checks, so that the channels it meets stay.
    """
    recorder.known = KnownOps(recorder.ops)
    asking, count = dict(recorder.asking), len(recorder.ops)
    try:
        return recorder.run(model, example_input, gradients=True)
    except ValuesNeededError:
        raise
    except Exception:  # noqa: BLE001 - the model's own code
        if not recorder.computed:
            raise
        del recorder.ops[count:]
        recorder.branches += [(path, given, GRADIENTS) for path, given in asking.items()]
        return []


def _note_asked_counts(recorder: OpRecorder, model: nn.Module, example_input: Any, idle: list[str]) -> None:
    """Run a model again and note a branch on values for each module that reads how many entries were selected.

    Only modules with `idle` layers count: for another number of entries, these layers may run.
    """
    recorder.known = KnownOps(recorder.ops)
    count, noted = len(recorder.ops), set[str]()

    def note() -> None:
        path = recorder.where()
        if path not in noted and any(layer.startswith(f"{path}." if path else "") for layer in idle):
            noted.add(path)
            recorder.decided()

    model.eval()
    try:
        with CountWatch(model, recorder.counts, note):
            recorder.run(model, example_input)
    except Exception:  # noqa: BLE001 - the model's own code accepts only plain integers
        pass
    del recorder.ops[count:]


def modules_that_ask_for_the_mode(model: nn.Module) -> list[str]:
    """Return the paths of modules with inner layers whose own forward reads `training`, which may change outputs."""
    return [
        path
        for path, module in named_modules(model)
        if not is_torch(type(module))
        and mentions_training(type(module))
        and any(below is not module and below._parameters for below in module.modules())
    ]
