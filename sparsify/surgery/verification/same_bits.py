"""Bitwise comparison of a converted model with the same model without masks, with equal inputs, states and seeds."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn

from ...calls import tensors_in
from ...preserve import seed_cpu
from ..conversion.fold import plain_copy
from ..copies import deep_copy
from ..copy_on_write import CopyOnWrite
from ..mask_state.masks import all_masked_parameters
from .recomputed_weights import recomputed_weights

Inspect = Callable[[nn.Module, list[Tensor]], None]  # called with a copy that has run and its outputs
Watched = Callable[[nn.Module], AbstractContextManager[Any]]  # what a copy runs in


@dataclass(frozen=True)
class Mode:
    """A way to call a model. `backward`: also compare gradients; `required`: leave out optional arguments."""

    name: str
    training: bool = False
    gradients: bool = False
    backward: bool = False
    autocast: bool = False
    required: bool = False


EVAL = Mode("eval mode")
TRAIN = Mode("train mode", training=True, gradients=True, backward=True)
EXTRA_MODES = (
    Mode("eval mode with gradients", gradients=True),
    Mode("train mode without gradients", training=True),
    Mode("eval mode under autocast", autocast=True),
    Mode("train mode under autocast", training=True, gradients=True, autocast=True),
)
EVAL_WITH_GRADIENTS = EXTRA_MODES[0]
REQUIRED = (
    Mode("eval mode, optional arguments left out", gradients=True, required=True),
    Mode("train mode, optional arguments left out", training=True, gradients=True, required=True),
)


@dataclass
class Runs:
    """Runs copies of one model, each from the model's own state (tensors, attributes) and with the same seeds.

    The copies share the model's `memory` until they write to it; `masks` maps the ids of the model's masks to the masks
    of the copies.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    memory: CopyOnWrite
    masks: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look at the model and its call."""
        self.masked = {id(weight.parameter) for weight in all_masked_parameters(self.model)}
        self.required = required_call(self.model, self.args, self.kwargs)

    def copied(self, *, plain: bool, gradients: bool) -> nn.Module:
        """Return a copy of the model in its current state, without masks (`plain`) or with `masks`."""
        memo: dict[int, Any] = self.memory.of_model(self.model) | self.masks
        for parameter in self.model.parameters():
            if id(parameter) in memo:
                values = memo[id(parameter)]
                wanted = gradients and id(parameter) in self.masked and values.is_floating_point()
                memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad or wanted)
        for module in self.model.modules():
            held = [value for value in module.__dict__.values() if isinstance(value, torch.Generator)]
            memo |= {id(generator): generator.clone_state() for generator in held}
        if plain:
            return plain_copy(self.model, memo)
        copied: nn.Module = deep_copy(self.model, memo)
        return copied

    def run(
        self, mode: Mode, *, plain: bool, gradients: bool, watched: Watched = nullcontext
    ) -> tuple[nn.Module, list[Tensor]]:
        """Return a copy of the model that has run in a mode, `watched`, and its outputs."""
        model = self.copied(plain=plain, gradients=gradients)
        try:
            with watched(model), recomputed_weights(model, self.memory) if mode.gradients else nullcontext():
                return model, self._outputs(model, mode)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):  # which torch.func refuses
                raise
        model = self.copied(plain=plain, gradients=gradients)
        with watched(model):
            return model, self._outputs(model, mode)

    def _outputs(self, model: nn.Module, mode: Mode) -> list[Tensor]:
        args, kwargs = self.required if mode.required and self.required is not None else (self.args, self.kwargs)
        args, kwargs = copy.deepcopy((args, kwargs))
        model.train(mode.training)
        device = next((p.device.type for p in model.parameters()), "cpu")
        seed_cpu(0)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(0)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(mode.gradients))
            if mode.autocast:
                stack.enter_context(torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False))
            outputs = model(*args, **kwargs)
            return tensors_in([*outputs] if isinstance(outputs, GeneratorType) else outputs)

    def results(self, mode: Mode, *, plain: bool, look: Inspect | None = None) -> list[Tensor]:
        """Return the outputs, digests of the gradients (if the mode has a backward pass) and buffers after one run."""
        model, outputs = self.run(mode, plain=plain, gradients=mode.gradients)
        if look is not None:
            look(model, outputs)
        gradients: list[Tensor] = []
        if mode.backward:
            loss = sum(output.float().square().mean() for output in outputs if output.requires_grad)
            digests = _digested_gradients(model)
            if isinstance(loss, Tensor):
                loss.backward()  # type: ignore[no-untyped-call]
            joined = b"".join(digests.get(id(p), bytes(32)) for p in model.parameters())
            gradients = [torch.tensor(list(joined), dtype=torch.uint8, device="cpu")]
        masks = {id(weight.mask) for weight in all_masked_parameters(model)}
        buffers = [buffer for buffer in model.buffers() if id(buffer) not in masks]
        return [*(output.detach() for output in outputs), *gradients, *buffers]

    def same(self, mode: Mode, look: Inspect | None = None) -> tuple[bool | None, str]:
        """Return (whether both models give the same bits in a mode, ""), or (None, reason) if bits vary between runs.

        Raises whatever the model without masks raises.
        """
        expected = self.results(mode, plain=True)
        given = self.results(mode, plain=False, look=look)
        if _equal(expected, given):
            return True, ""
        # Results may depend on the time or on the order of threads; then a difference proves nothing.
        for plain, first in ((True, expected), (False, given), (True, expected)):
            if not _equal(first, self.results(mode, plain=plain)):
                return None, "the model does not repeat its own bits"
        return False, ""


def required_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments of a call without the optional ones, or None if the call gives no optional argument."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    parameters = bound.signature.parameters
    optional = [name for name in bound.arguments if parameters[name].default is not inspect.Parameter.empty]
    for name in optional:
        del bound.arguments[name]
    return (bound.args, bound.kwargs) if optional else None


def left_out(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Return the names of the optional arguments that a call leaves out."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return []
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    optional = [name for name, one in bound.signature.parameters.items() if one.kind not in collecting]
    return [name for name in optional if name not in bound.arguments]


def _digested_gradients(model: nn.Module) -> dict[int, bytes]:
    """Return a dict that a backward pass fills with digests of the gradients' bits, by parameter id.

    Each gradient is freed once it is complete, since all of them together take as much memory as the model.
    """
    found: dict[int, bytes] = {}

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        bits = _bits(parameter.grad.to_dense()).cpu().numpy()
        digest = hashlib.sha256(f"{parameter.grad.dtype}{bits.shape}".encode())
        digest.update(bits.data)
        found[id(parameter)] = digest.digest()
        parameter.grad = None

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
    return found


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_floating_point():
        return tensor
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().contiguous().view(integer)
