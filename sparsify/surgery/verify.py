"""verify(): proof of a conversion on an example input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .fold import plain_copy
from .masks import MaskedWeight, all_masked_weights, is_computed, masked_weights, set_masks

# Operations that multiply with a weight, by the name torch gives them.
_DENSE_OPERATIONS = frozenset(
    """linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    matmul mm bmm addmm baddbmm einsum tensordot multi_head_attention_forward _native_multi_head_attention
    _transformer_encoder_layer_fwd lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell""".split()
)
_TAKES_WEIGHT_SECOND = frozenset(name for name in _DENSE_OPERATIONS if name.startswith(("linear", "conv")))
_LEAST_ZEROS = 0.2  # of a weight whose mask removes one half


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `None` for a comparison that could not be made; `notes` says why.

    `identical_eval` and `identical_train`: same bits as the model without masks (in train mode with the same seed,
    gradients and buffers included). `live`: weights whose mask is reached by autograd in train or eval mode. `unused`:
    weights that the forward does not use in either mode. `dense`: weights used somewhere without their mask. `leaks`:
    operations that saw a dense weight under random half masks.
    """

    identical_eval: bool | None
    identical_train: bool | None
    masked: list[str]
    live: list[str]
    unused: list[str]
    dense: list[str]
    leaks: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def dead(self) -> list[str]:
        """Weights that the forward uses although their mask has no effect."""
        quiet = {*self.live, *self.unused}
        return [name for name in self.masked if name not in quiet]

    @property
    def problems(self) -> list[str]:
        """One line for each thing that is wrong; empty if the conversion holds."""
        lines = []
        if self.identical_eval is False:
            lines.append("the outputs in eval mode differ from the model without masks")
        if self.identical_train is False:
            lines.append("the outputs, gradients or buffers in train mode differ from the model without masks")
        lines += [f"{name}: its mask has no effect" for name in self.dead]
        lines += [f"{name}: used without its mask as well" for name in self.dense]
        return lines + self.leaks

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return "not verified: " + "; ".join(self.problems)
        same = {True: "same bits", None: "not compared"}
        unused = f", {len(self.unused)} not used by the forward" if self.unused else ""
        return (
            f"verified: {same[self.identical_eval]} in eval mode, {same[self.identical_train]} in train mode, "
            f"{len(self.live)} of {len(self.masked)} masks live{unused}, no dense weight seen under half masks"
        )


def verify(model: nn.Module, args: Any = (), kwargs: dict[str, Any] | None = None) -> VerifyReport:
    """Prove a conversion on one input; `model` is not changed, copies of it are run.

    `args` is one tensor or a tuple. With all-ones masks the outputs must equal the plain model's bit for bit, in eval
    mode and, with the same seed, in train mode, gradients and buffers included. Every mask must be reached by autograd
    in train or eval mode, and with random half masks no conv, linear, attention or recurrent operation may see a dense
    weight. Raises whatever the model raises in eval mode; if only train mode fails, that is noted.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    subject, plain = copy.deepcopy(model), plain_copy(model)
    for tensor in (*subject.parameters(), *plain.parameters()):
        tensor.grad = None
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        return _verify(subject, plain, lambda m: m(*copy.deepcopy(args), **copy.deepcopy(kwargs or {})))


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _verify(subject: nn.Module, plain: nn.Module, run: Callable[[nn.Module], Any]) -> VerifyReport:
    weights = masked_weights(subject)
    set_masks(subject, {name: torch.ones_like(weight.mask) for name, weight in weights.items()})
    notes: list[str] = []
    with torch.no_grad():
        identical_eval = _same(lambda m: _outputs(run, m, training=False), subject, plain, notes)
    for model in (subject, plain):
        for name, weight in masked_weights(subject).items():
            model.get_parameter(name).requires_grad_(weight.parameter.is_floating_point())
    identical_train: bool | None = None
    modes = [False]
    try:
        identical_train = _same(lambda m: _trained(run, m), subject, plain, notes)
        modes.append(True)
    except Exception as error:  # noqa: BLE001 - some models cannot run in train mode on such an input (targets, batch of one)
        notes.append(
            f"train mode was not checked: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    live, reached, dense = set[str](), set[str](), set[str]()
    for training in modes:
        _walk(_outputs(run, subject, training=training), weights, live, reached, dense)
    leaks = _leaks(run, subject, modes)
    names = list(weights)
    return VerifyReport(
        identical_eval,
        identical_train,
        names,
        [name for name in names if name in live],
        [name for name in names if name not in live | reached],
        [name for name in names if name in dense and name in live],
        leaks,
        notes,
    )


def _outputs(run: Callable[[nn.Module], Any], model: nn.Module, *, training: bool) -> list[Tensor]:
    torch.manual_seed(0)
    model.train(training)
    return list(_tensors(run(model)))


def _tensors(value: Any, within: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Yield the tensors in an output of any make: tuples, lists, dicts, dataclasses."""
    items: Iterable[Any] = ()
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        items = vars(value).values()
    if id(value) not in within:  # an object may refer to itself
        for item in items:
            yield from _tensors(item, (*within, id(value)))


def _trained(run: Callable[[nn.Module], Any], model: nn.Module) -> list[Tensor]:
    """Return the outputs, gradients and buffers of one forward and backward in train mode."""
    outputs = _outputs(run, model, training=True)
    loss = sum(output.float().square().mean() for output in outputs if output.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad if p.grad is not None else torch.zeros(()) for p in model.parameters()]
    masks = {id(weight.mask) for weight in all_masked_weights(model)}
    buffers = [buffer.clone() for buffer in model.buffers() if id(buffer) not in masks]
    for parameter in model.parameters():
        parameter.grad = None
    return [*(output.detach() for output in outputs), *gradients, *buffers]


def _same(
    compute: Callable[[nn.Module], list[Tensor]], subject: nn.Module, plain: nn.Module, notes: list[str]
) -> bool | None:
    state = {name: value.clone() for name, value in plain.named_buffers()}
    expected, given = compute(plain), compute(subject)
    if _equal(expected, given):
        return True
    for name, value in plain.named_buffers():
        value.copy_(state[name])
    if not _equal(expected, compute(plain)):
        notes.append("the model without masks gives other bits each time: not compared")
        return None
    return False


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().contiguous().view(integer)


def _mask_of(node: Any) -> Tensor | None:
    """Return the condition that a step of the backward graph masks with, if it is one."""
    if node.name().startswith("_MaskOperand"):
        mask: Tensor = node.saved_tensors[0]
        return mask
    return node._saved_condition if node.name() == "WhereBackward0" else None


def _walk(
    outputs: list[Tensor], weights: dict[str, MaskedWeight], live: set[str], reached: set[str], dense: set[str]
) -> None:
    """Add the names of weights whose mask, whose parameter, and whose parameter past its mask the outputs depend on."""
    by_mask = {weight.mask.data_ptr(): weight for weight in weights.values() if weight.mask.numel()}
    first_name = {id(weight.parameter): name for name, weight in weights.items()}
    roots = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[tuple[Any, frozenset[int]]] = set()
    waiting: list[tuple[Any, frozenset[int]]] = [(root, frozenset()) for root in roots]
    while waiting:
        node, passed = waiting.pop()
        if (node, passed) in seen:
            continue
        seen.add((node, passed))
        mask = _mask_of(node)
        weight = by_mask.get(mask.data_ptr()) if mask is not None else None
        if weight is not None:
            live.add(first_name[id(weight.parameter)])
            passed = passed | {id(weight.parameter)}
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in first_name:
            reached.add(first_name[id(variable)])
            if id(variable) not in passed:
                dense.add(first_name[id(variable)])
        waiting.extend((following, passed) for following, _ in node.next_functions if following is not None)


def _leaks(run: Callable[[nn.Module], Any], model: nn.Module, modes: list[bool]) -> list[str]:
    """Run under random half masks and return a line for every operation that saw a dense weight."""
    generator = torch.Generator().manual_seed(0)
    weights = masked_weights(model)
    set_masks(model, {name: _half(weight, generator) for name, weight in weights.items()})
    watch = _DenseWeights(weights)
    for training in modes:
        with watch:
            _outputs(run, model, training=training)
    with torch.no_grad(), _FusedOperations(watch):
        _outputs(run, model, training=False)
    return list(dict.fromkeys(watch.found))


def _half(weight: MaskedWeight, generator: torch.Generator) -> Tensor:
    count = weight.mask.numel()
    order = torch.randperm(count, generator=generator)
    return (order < (count + 1) // 2).reshape(weight.mask.shape).to(weight.mask.device)


class _DenseWeights(TorchFunctionMode):
    """Notes every operation that multiplies with a masked weight as it is, or as computed past its mask."""

    def __init__(self, weights: dict[str, MaskedWeight]) -> None:
        super().__init__()
        self.found: list[str] = []
        self.weights = weights
        self.storages = {w.parameter.untyped_storage().data_ptr(): name for name, w in weights.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = getattr(func, "__name__", "")
        self.look_at_arguments(operation, (args, kwargs))
        if operation in _TAKES_WEIGHT_SECOND and len(args) > 1 and isinstance(args[1], Tensor):
            self._look_at_computed(operation, args[1])
        return func(*args, **(kwargs or {}))

    def look_at_arguments(self, operation: str, arguments: Any) -> None:
        """Note the masked weights that are among the arguments of an operation as they are."""
        for tensor in _tensors(arguments) if operation in _DENSE_OPERATIONS else ():
            name = self.storages.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
            # What computes a weight multiplies with the parameter (a spectral norm say): the result is masked.
            if name is not None and (operation in _TAKES_WEIGHT_SECOND or not is_computed(self.weights[name])):
                self.found.append(f"{name}: {operation} saw the dense weight")

    def _look_at_computed(self, operation: str, operand: Tensor) -> None:
        live, reached, dense = set[str](), set[str](), set[str]()
        _walk([operand], self.weights, live, reached, dense)
        self.found += [f"{name}: {operation} saw a weight computed from it past its mask" for name in sorted(dense)]
        few_zeros = operand.numel() > 1 and (operand == 0).float().mean().item() < _LEAST_ZEROS
        for name in sorted(live - dense):
            if few_zeros and operand.shape == self.weights[name].parameter.shape:
                self.found.append(f"{name}: {operation} saw a weight whose zeros were lost after masking")


class _FusedOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes dense weights in the kernels that layers of torch.nn call in eval mode without gradients.

    They are not called while a TorchFunctionMode is active, and the operations below are named as torch's own are.
    """

    def __init__(self, watch: _DenseWeights) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watch.look_at_arguments(func.overloadpacket.__name__, (args, kwargs))
        return func(*args, **(kwargs or {}))
