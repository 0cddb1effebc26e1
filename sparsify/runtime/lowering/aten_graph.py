"""Tracing a model's forward as a flat graph of aten operations without side effects, and its constants."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ...calls import run
from ...errors import RunError
from ...surgery.tracing.announced import announced_as_traced
from ..call_outputs import Outline, flatten_outputs
from ..kernel_errors import PASSED, TraceError, one_line

# Engines trace in threads that end. In PyTorch 2.10 the first thread to enter this mode owns the device guard of builds
# with CUDA where no GPU is present, and takes it along: the next trace would crash.
with FakeTensorMode():
    pass

# Methods that expose a tensor's memory to other code: a traced tensor has no values, and NumPy would read garbage.
_READS = frozenset({"numpy", "__array__", "__dlpack__", "tolist", "data_ptr", "untyped_storage", "storage"})


# Given a packed sequence, these read its batch sizes, integers, as numbers.
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_WITH_STATES = _RECURRENT | {f"{name}_cell" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}


def _following(states: Any, given: Tensor) -> Any:
    """Return a recurrent operation's first states as tensors that follow its input, since it writes to what it makes.

    `functionalize` refuses to write what depends on an input to what does not: states that are parameters.
    """
    if isinstance(states, (tuple, list)):
        return type(states)([_following(state, given) for state in states])
    follows = not isinstance(states, Tensor) or torch._is_functional_tensor(states)
    return states if follows else states + given.new_zeros(())


class _RefuseReads(TorchFunctionMode):
    """Raises RunError if a forward reads values without a PyTorch operation; lets it ask for gradients in vain."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _READS and args and isinstance(args[0], Tensor) and torch._is_functional_tensor(args[0]):
            raise RunError(f"the forward depends on values (Tensor.{name})")
        if name in _RECURRENT and isinstance(args[1], Tensor) and not args[1].is_floating_point():
            raise RunError("the forward depends on values (the lengths of a packed sequence)")
        if name in _WITH_STATES and len(args) > 1:
            args = (args[0], _following(args[1], args[0]), *args[2:])
        if function is Tensor.requires_grad_:  # which transforms refuse
            return args[0]
        return function(*args, **(kwargs or {}))


def trace(model: nn.Module, inputs: Sequence[Tensor], unflatten: Any) -> tuple[fx.GraphModule, Outline]:
    """Return the graph of the call `unflatten(inputs)` for inputs of these shapes, and the outline of its outputs.

    The graph takes the tensors one by one and returns a flat list. It holds for the values that give its tensors the
    sizes in their `meta`. The model is plain and in eval mode. Raises TraceError if PyTorch cannot record the forward,
    and RunError if its control flow depends on values even in the general path that libraries take under tracing
    (`announced_as_traced`).
    """
    try:
        return _traced(model, inputs, unflatten)
    except RunError:
        try:
            with announced_as_traced():
                return _traced(model, inputs, unflatten)
        except (RunError, TraceError):
            pass
        raise


def _traced(model: nn.Module, inputs: Sequence[Tensor], unflatten: Any) -> tuple[fx.GraphModule, Outline]:
    found: list[Outline] = []

    def flat(*tensors: Tensor) -> list[Any]:
        with _RefuseReads(), _WholeConstants(model):
            outputs, outline = flatten_outputs(run(model, unflatten(tensors)))
        found[:] = [outline]
        return outputs

    with torch.no_grad(), _custom_functions_as_operations():
        try:
            graph = make_fx(functionalize(flat, remove="mutations"))(*inputs)
            if any(_writes(node) for node in graph.graph.nodes):  # inside PyTorch's recurrent layers
                graph = make_fx(functionalize(graph, remove="mutations"))(*inputs)
        except (*PASSED, RunError):
            raise
        except Exception as error:
            # The message of make_fx for .item() and the like.
            if "value out of a tracing tensor" in str(error):
                what = f"it takes a number out of a tensor{_where(error)}"
                raise RunError(f"the forward depends on values ({what})") from error
            raise TraceError(one_line(error)) from error
    _refuse_values(graph)
    # The forward may have read the size of a result that nothing else reads.
    graph.graph.eliminate_dead_code(lambda node: node.is_impure() or sized_by_values(node))
    return graph, found[0]


class _Here(threading.local):
    traced = False


_HERE, _ONE_AT_A_TIME, _APPLY = _Here(), threading.RLock(), vars(torch.autograd.Function)["apply"]


@contextmanager
def _custom_functions_as_operations() -> Iterator[None]:
    """Record the operations of custom autograd functions, which `functionalize` refuses; calls of this thread alone."""
    before = _HERE.traced
    with _ONE_AT_A_TIME, patch.object(torch.autograd.Function, "apply", classmethod(_applied)):
        _HERE.traced = True
        try:
            yield
        finally:
            _HERE.traced = before


def _applied(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """Stand in for `Function.apply`: without gradients and further transforms it is the function's forward."""
    transform = peek_interpreter_stack() if _HERE.traced else None
    if transform is None or transform.key() != TransformType.Functionalize or torch.is_grad_enabled():
        return _APPLY.__get__(None, function)(*args, **kwargs)
    if function.setup_context is torch.autograd.Function.setup_context:  # the forward takes the context
        context = FunctionCtx()
        context.needs_input_grad = (False,) * len(args)  # type: ignore[attr-defined]
        args = (context, *args)
    return function.forward(*args, **kwargs)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _where(error: Exception) -> str:
    """Return the innermost file and line of an error outside PyTorch and this library, "" for none."""
    ours = str(Path(torch.__file__).parent), str(Path(__file__).parents[2])
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f", {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _refuse_values(graph: fx.GraphModule) -> None:
    """Raise RunError if the forward reads a value that depends on its inputs, so that the next call may differ."""
    varying: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
            if torch.Tag.data_dependent_output in getattr(node.target, "tags", ()):
                raise RunError(f"the forward depends on values ({node.target})")


def sized_by_values(node: fx.Node) -> bool:
    """Return whether values give an operation's result its size: the entries that a mask picks, distinct numbers."""
    if node.target is torch.ops.aten.index.Tensor:
        given = [one.meta.get("val") for one in node.args[1] if isinstance(one, fx.Node)]  # type: ignore[union-attr]
        return any(not isinstance(one, Tensor) or one.dtype in (torch.bool, torch.uint8) for one in given)
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


class _WholeConstants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes integers that no input affects outside the trace, so that a forward may read positions and masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: Any = WeakIdKeyDictionary()
        for tensor in model.buffers():
            if not tensor.is_floating_point() and not tensor.is_complex():
                self.known[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if func._schema.is_mutable or seeded or any(tensor not in self.known for tensor in given):
            return func(*args, **kwargs)
        with disable_proxy_modes_tracing():
            outcome = func(*args, **kwargs)
        found = [leaf for leaf in pytree.tree_leaves(outcome) if isinstance(leaf, Tensor)]
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in found):
            return func(*args, **kwargs)
        for tensor in found:
            self.known[tensor] = True
        return outcome


def constants(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """Return the value of every node that depends on no input, computed once."""
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(graph)
            known[node] = value.detach() if isinstance(value, Tensor) else value
        elif node.op == "call_function" and all(source in known for source in node.all_input_nodes):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    return known


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's tensor, None if it is not float32 or empty, for which there are no kernels."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or 0 in value.shape:
        return None
    return tuple(value.shape)
