"""Leak check: find the operations of a converted model that see a weight without its mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ... import ops
from ...calls import tensors_in
from ..mask_state.masks import MaskedWeight, all_masked_parameters, is_computed, masked_parameters

# Operations that take weights or extra parameters, by their names in torch.
_DENSE_OPERATIONS = frozenset(
    """linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    matmul mm bmm addmm baddbmm einsum tensordot linalg_multi_dot chain_matmul
    multi_head_attention_forward _native_multi_head_attention _transformer_encoder_layer_fwd
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    batch_norm layer_norm group_norm instance_norm rms_norm prelu""".split()
)
_TAKES_WEIGHT_SECOND = frozenset(name for name in _DENSE_OPERATIONS if name.startswith(("linear", "conv")))
_PRODUCTS = _DENSE_OPERATIONS - {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu"}
# Operations that pass a masked weight on without using it.
_PASSED_ON = frozenset(
    """where detach alias requires_grad_ view view_as _unsafe_view permute transpose t contiguous __get__
    as_subclass data_ptr stride size untyped_storage is_inference""".split()
)
_LEAVING = frozenset({"numpy", "__array__", "__dlpack__"})  # that hand memory to other libraries
_LEAST_ZEROS = 0.2  # of a weight whose mask removes one half


def _storage(tensor: Tensor) -> int:
    """Return what names a tensor's storage: not its address, since asking for that ends copy-on-write."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors and others without storage
        return 0


def _mask_of(node: Any) -> Tensor | None:
    """Return the mask that a node of the autograd graph applies, or None."""
    if node.name().startswith("_MaskOperand"):
        mask: Tensor = node.saved_tensors[0]
        return mask
    return node._saved_condition if node.name() == "WhereBackward0" else None


def walk(
    outputs: list[Tensor], weights: dict[str, MaskedWeight], live: set[str], reached: set[str], dense: set[str]
) -> None:
    """Walk the autograd graph of `outputs` and add weight names to three sets.

    `live`: the walk reaches the weight's mask; `reached`: it reaches the parameter; `dense`: it reaches the parameter
    on a path without its mask.
    """
    by_mask = {_storage(weight.mask): weight for weight in weights.values() if weight.mask.numel()}
    first_name = {id(weight.parameter): name for name, weight in weights.items() if weight.parameter.numel()}
    roots = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[tuple[Any, frozenset[int]]] = set()
    waiting: list[tuple[Any, frozenset[int]]] = [(root, frozenset()) for root in roots]
    while waiting:
        node, passed = waiting.pop()
        if (node, passed) in seen:
            continue
        seen.add((node, passed))
        mask = _mask_of(node)
        weight = by_mask.get(_storage(mask)) if mask is not None else None
        if weight is not None:
            live.add(first_name[id(weight.parameter)])
            passed = passed | {id(weight.parameter)}
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in first_name:
            reached.add(first_name[id(variable)])
            if id(variable) not in passed:
                dense.add(first_name[id(variable)])
        waiting.extend((following, passed) for following, _ in node.next_functions if following is not None)


class DenseWeights(TorchFunctionMode):
    """Record every operation that uses a masked weight, or a weight computed from it, without the mask.

    `found` has a line for each such operation. `used` holds the weights whose masked form an operation used, `unmasked`
    the parameters of two or more dimensions without a mask that a product used. Copies of `converted` run.
    """

    def __init__(self, converted: nn.Module) -> None:
        super().__init__()
        # A copy runs, but closures that were not copied with it read the model itself.
        self.of_model = {_storage(w.parameter): name for name, w in masked_parameters(converted).items()}
        self.found: list[str] = []
        self.used: set[str] = set()
        self.unmasked: set[str] = set()

    def of(self, model: nn.Module) -> DenseWeights:
        """Return self, watching the weights of a converted model that is about to run."""
        self.weights = masked_parameters(model)
        first = {id(weight.parameter): name for name, weight in self.weights.items()}
        here = {_storage(w.parameter): name for name, w in self.weights.items()}
        self.storages = self.of_model | here
        every = list(all_masked_parameters(model))
        self.masks = {_storage(w.mask): first[id(w.parameter)] for w in every if w.mask.numel()}
        self.others = {
            _storage(parameter): name
            for name, parameter in model.named_parameters()
            if id(parameter) not in first and parameter.dim() > 1 and parameter.numel()
        }
        self.outside: dict[int, int] = {}  # address of a parameter's memory that left PyTorch -> its storage
        self.effective: Any = WeakIdKeyDictionary()  # tensor -> the weight that it is the masked form of
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = getattr(func, "__name__", "")
        self.look_at_arguments(operation, (args, kwargs))
        if operation in _TAKES_WEIGHT_SECOND and len(args) > 1 and isinstance(args[1], Tensor):
            self._look_at_computed(operation, args[1])
        result = func(*args, **(kwargs or {}))
        self.follow(operation, args, result)
        if operation in _LEAVING and {_storage(args[0])} & {*self.storages, *self.others}:
            self.outside[args[0].untyped_storage().data_ptr()] = _storage(args[0])
        return result

    def _memory(self, tensor: Tensor) -> int:
        """Return what names a tensor's storage, or the one whose memory it got back from outside of PyTorch."""
        own = _storage(tensor)
        return self.outside.get(tensor.untyped_storage().data_ptr(), own) if own and self.outside else own

    def follow(self, operation: str, args: Any, result: Any) -> None:
        """Record the weights whose masked form an operation uses; one that only passes it on does not count."""
        given = [item for value in args for item in (value if isinstance(value, (tuple, list)) else (value,))]
        names = {self.effective.get(item) for item in given if isinstance(item, Tensor)}
        names |= {self.masks.get(_storage(item)) for item in given if isinstance(item, Tensor)}
        names.discard(None)
        if names and operation not in _PASSED_ON:
            self.used |= names
        elif names and isinstance(result, Tensor):
            self.effective[result] = next(iter(names))

    def look_at_arguments(self, operation: str, arguments: Any) -> None:
        """Record the weights that an operation takes as arguments without their masks."""
        for tensor in tensors_in(arguments) if operation in _DENSE_OPERATIONS else ():
            memory = self._memory(tensor)
            name = self.storages.get(memory) if tensor.numel() else None
            if operation in _PRODUCTS and memory in self.others:
                self.unmasked.add(self.others[memory])
            # A product that computes a weight may use the parameter (spectral norm); the mask goes on its result.
            if name is not None and (operation in _TAKES_WEIGHT_SECOND or not is_computed(self.weights[name])):
                self.found.append(f"{name}: {operation} saw the dense weight")

    def _look_at_computed(self, operation: str, operand: Tensor) -> None:
        live, reached, dense = set[str](), set[str](), set[str]()
        walk([operand], self.weights, live, reached, dense)
        self.found += [f"{name}: {operation} saw a weight computed from it past its mask" for name in sorted(dense)]
        readable = operand.numel() > 1 and not ops.is_transformed()
        few_zeros = readable and (operand == 0).float().mean().item() < _LEAST_ZEROS
        for name in sorted(live - dense):
            extra = self.weights[name].parameter_name in self.weights[name].module.__dict__.get("masked_also", ())
            # A tensor computed from a masked extra parameter need not have zeros.
            if few_zeros and not extra and operand.numel() == self.weights[name].parameter.numel():
                self.found.append(f"{name}: {operation} saw a weight whose zeros were lost after masking")


class FusedOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record dense weights in the fused kernels that layers of torch.nn call in eval mode without gradients.

    A dispatch mode, since layers do not call these kernels while a TorchFunctionMode is active.
    """

    def __init__(self, watch: DenseWeights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket.__name__
        self.watch.look_at_arguments(operation, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self.watch.follow(operation, args, result)
        return result
