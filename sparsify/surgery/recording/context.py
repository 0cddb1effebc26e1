"""The context of a recording: modes, the running modules, and calls that the dispatcher does not show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FrameType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ...calls import Inputs, inputs_of
from ...preserve import keep_modes
from ..module_walk import full_name, named_modules
from .operation_mode import OperationMode, in_steps, one_hot, padded_around

_Leaf = TypeVar("_Leaf")
# Functions recorded as one operation, independent of the kernels that a device runs for them.
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
WHOLE = (*_RECURRENT, *(f"{name}_cell" for name in _RECURRENT), "_pack_padded_sequence", "_pad_packed_sequence")
_ADDING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_REQUIRES_GRAD = vars(torch._C.TensorBase)["requires_grad"].__get__
_LEAVING = {Tensor.numpy: "numpy", Tensor.tolist: "tolist", Tensor.__array__: "numpy", Tensor.data_ptr: "data_ptr"}


def leaves(arguments: Any, kind: type[_Leaf]) -> list[_Leaf]:
    """Return the instances of `kind` in nested arguments or results, in order."""
    if isinstance(arguments, kind):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif not isinstance(arguments, (tuple, list)):
        return []
    return [leaf for argument in arguments for leaf in leaves(argument, kind)]


def own_inputs(example_input: Any) -> Inputs:
    """Return an example input as `Inputs` with cloned tensors, since a forward may write to them."""
    inputs = inputs_of(example_input, "example_input")
    copies: Inputs = tree_map_only(Tensor, lambda one: one.clone(), inputs)
    return copies


class FunctionHooks(TorchFunctionMode):
    """Reports function calls that the dispatcher does not show.

    `leave` is called with a tensor that goes to another library, `scaled` with the tensors that attention scales by the
    square root of their last size; `whole` runs the functions in `WHOLE`. `ask` is called when a model's code reads a
    tensor's `requires_grad`, which is True for every floating-point tensor if `gradients` is set.
    """

    def __init__(
        self,
        leave: Callable[[Tensor, str], None],
        scaled: Callable[..., None],
        whole: Callable[..., Any],
        ask: Callable[[], None] = lambda: None,
        *,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.ask, self.gradients = ask, gradients
        self.leave, self.scaled, self.whole = leave, scaled, whole

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _REQUIRES_GRAD and _is_of_a_model(sys._getframe(1)):
            self.ask()
            return func(*args, **kwargs) or (self.gradients and args[0].is_floating_point())
        if func in _LEAVING:
            self.leave(args[0], _LEAVING[func])
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            self.scaled(*[*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)][:2])
        if func is F.pad and "circular" in (*args[2:3], kwargs.get("mode")):
            return padded_around(*args[:2], *(kwargs[name] for name in ("input", "pad") if name in kwargs))
        if isinstance(func, HigherOrderOperator):
            with self:
                return in_steps(func)(*args, **kwargs)
        if func is F.one_hot:
            return one_hot(*args, **kwargs)
        if getattr(func, "__name__", "") in WHOLE and type(func) is BuiltinFunctionType:
            return self.whole(func, *args)
        return func(*args, **kwargs)


@contextmanager
def asked_gradient_mode(ask: Callable[[], None], *, gradients: bool) -> Iterator[None]:
    """Inside the block, call `ask` when a model's code calls torch.is_grad_enabled, and return `gradients` to it."""
    plain = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        if not _is_of_a_model(sys._getframe(1)):
            return plain()
        ask()
        return gradients

    with patch.object(torch, "is_grad_enabled", is_grad_enabled):
        yield


def _is_of_a_model(frame: FrameType) -> bool:
    """Return whether a frame runs neither torch nor sparsify, where the grad mode only selects how to compute."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in ("torch", __name__.partition(".")[0])


def named_tensors(model: nn.Module) -> list[tuple[Tensor, tuple[str, ...], bool]]:
    """Return (tensor, all its names, whether it is a parameter) for a model's parameters, then its buffers."""
    modules = named_modules(model, remove_duplicate=False)
    trainable = {id(parameter) for _, module in modules for parameter in module._parameters.values()}
    named: dict[int, tuple[Tensor, list[str]]] = {}
    for owned in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, owned).items():
                if tensor is not None:
                    named.setdefault(id(tensor), (tensor, []))[1].append(full_name(path, name))
    return [(tensor, tuple(names), id(tensor) in trainable) for tensor, names in named.values()]


def whole_attentions(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of nn.MultiheadAttention modules, which cannot lose heads: embed_dim fixes their total width."""
    return tuple(path for path, module in named_modules(model) if isinstance(module, nn.MultiheadAttention))


def addable_biases(model: nn.Module) -> frozenset[str]:
    """Return the names of the biases, present or not, of layers whose forward is that of nn.Linear or nn.Conv."""
    found = set()
    for path, module in named_modules(model, remove_duplicate=False):
        for cls in _ADDING if isinstance(module, _ADDING) else ():
            inner = "forward" if cls is nn.Linear else "_conv_forward"
            if type(module).forward is cls.forward and getattr(type(module), inner) is getattr(cls, inner):
                found.add(full_name(path, "bias"))
    return frozenset(found)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with the model in eval mode, then restore the mode of every module."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path runs a whole encoder layer as one operation
    try:
        with keep_modes(model):
            model.eval()  # also if it is in eval mode, since some classes clear a cache in eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def not_compiled() -> Iterator[None]:
    """Run torch.compile'd code eagerly inside the block."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def module_names(model: nn.Module, running: list[str], given: list[Any] | None = None) -> Iterator[None]:
    """Keep in `running` the paths of the modules whose forward runs, innermost last, and in `given` their arguments."""
    given = [] if given is None else given
    # Global hooks, since registering one on each module can take longer than the forward.
    names = {
        id(module): name for name, module in named_modules(model) if not isinstance(module, torch.jit.ScriptModule)
    }

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            running.append(names[id(module)])
            given.append(args)

    def leave(module: nn.Module, *_: Any) -> None:
        if id(module) in names:
            running.pop()
            given.pop()

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True):
        yield


class _Doubles(OperationMode):  # type: ignore[no-untyped-call]
    """Runs operations in float64 for which a forward requests a narrower dtype."""

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of one operation, computed in float64 if any of its tensors is."""
        kwargs = dict(kwargs)
        if kwargs.get("dtype") in _SHORTER:
            kwargs["dtype"] = torch.float64
        dtypes = {leaf.dtype for leaf in leaves((args, kwargs), Tensor)}
        if torch.float64 in dtypes and not dtypes.isdisjoint(_SHORTER) and not func._schema.is_mutable:
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        if torch.float64 in dtypes and func._schema.name == "aten::_grouped_mm":  # it has no float64 kernel
            return _group_by_group(*args, **kwargs)
        return func(*args, **kwargs)


def _group_by_group(rows: Tensor, experts: Tensor, offs: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
    """Return each row times the matrix of its group's expert; group i ends before row offs[i]."""
    if offs is None or rows.dim() != 2 or experts.dim() != 3:
        return torch.ops.aten._grouped_mm(rows, experts, offs, *rest, **options)  # type: ignore[no-any-return]
    ends = [int(end) for end in offs]
    parts = [rows[begin:end] @ one for begin, end, one in zip([0, *ends], ends, experts, strict=False)]
    beyond = rows.new_zeros(len(rows) - ends[-1], experts.shape[-1])
    return torch.cat([*parts, beyond])


_SHORTER = (torch.float32, torch.float16, torch.bfloat16)


def _widened(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.dtype in _SHORTER else leaf


@contextmanager
def all_double() -> Iterator[None]:
    """Compute in float64 inside the block, even where code requests float32 or creates float32 tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubles():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
