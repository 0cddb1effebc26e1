"""The gradient of a loss for the effective weights, with the model left as it was."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import SparsifyError
from ..surgery.masks import MaskedWeight, all_masked_weights, effective_weight, masked_weights

# loss_fn(model, batch) returns the loss of one batch, a tensor of one element.
LossFunction = Callable[[nn.Module, Any], Tensor]


def on_model_and_batch(loss_fn: Callable[..., Tensor]) -> LossFunction:
    """Return `loss_fn` as a function of (model, batch).

    It is one already if its first parameter is called `model`, `net` or `m` or its second `batch`, and for batches that
    are no pairs. Any other is a loss of (outputs, targets), such as F.cross_entropy or nn.CrossEntropyLoss(), of
    batches that are (inputs, targets).
    """
    try:
        first, second = [*inspect.signature(loss_fn).parameters, "", ""][:2]
    except ValueError:  # some functions written in C have no signature
        first = second = ""
    if first in ("model", "net", "m") or second == "batch":
        return loss_fn

    def loss_of_batch(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            return loss_fn(model, batch)
        inputs, targets = batch
        return loss_fn(model(inputs), targets)

    return loss_of_batch


def summed_gradients(
    model: nn.Module, names: Iterable[str], batches: Iterable[Any], loss_fn: LossFunction
) -> dict[str, Tensor]:
    """Return dL/dw summed over `batches` for each named effective weight, float32 or wider, shaped like it.

    The model runs in train mode under its present masks; an entry that is masked has gradient 0. Weights, gradients,
    buffers, training flags and random states are afterwards what they were. Raises SparsifyError if `batches` is empty
    or a loss is no tensor of one element that depends on the weights.
    """
    weights = {name: weight for name, weight in masked_weights(model).items() if name in set(names)}
    computed = {name for name, weight in weights.items() if _is_computed(weight)}
    parameters = {name: weight.parameter for name, weight in weights.items()}
    sums = {name: torch.zeros_like(parameter, dtype=_wide(parameter)) for name, parameter in parameters.items()}
    count = 0
    with _unchanged(model, parameters.values()), torch.enable_grad():
        for batch in batches:
            count += 1
            watch = _Watch(model, {name: sums[name] for name in computed})
            with watch:
                loss = loss_fn(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise SparsifyError(
                    "loss_fn must return the loss of the batch, a tensor of one element with a gradient"
                )
            gradients = torch.autograd.grad(loss.reshape(()), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None and name not in computed:
                    sums[name].add_(gradient)
                # A computed weight that got a gradient went through a masked operation, where it was watched.
                assert gradient is None or name not in computed or name in watch.seen, f"{name}: gradient not found"
    if count == 0:
        raise SparsifyError("pruner.start: there is no batch to take gradients from")
    return sums


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _is_computed(weight: MaskedWeight) -> bool:
    return effective_weight(weight).data_ptr() != weight.parameter.data_ptr()


class _Watch(TorchFunctionMode):
    """Adds up the gradients of effective weights that a module computes, where the mask is put on them."""

    def __init__(self, model: nn.Module, sums: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sums = sums
        self.seen: set[str] = set()
        first = {id(weight.parameter): name for name, weight in masked_weights(model).items()}
        every = {id(weight.mask): first[id(weight.parameter)] for weight in all_masked_weights(model)}
        self.names = {mask: name for mask, name in every.items() if name in sums}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.names.get(id(args[0])) if func is torch.where and len(args) == 3 else None
        if name is not None and isinstance(args[1], Tensor) and args[1].requires_grad:
            mask, total = args[0], self.sums[name]
            self.seen.add(name)

            def add(gradient: Tensor) -> None:
                total.add_(gradient.detach() * mask)

            args[1].register_hook(add)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchanged(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put the model in train mode with gradients for `parameters`; at the end put everything back."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    training = {module: module.training for module in model.modules()}
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    masks = {id(weight.mask) for weight in all_masked_weights(model)}
    values = [
        (buffer, buffer.clone())
        for _, owned in buffers
        for buffer in owned.values()
        if buffer is not None and id(buffer) not in masks
    ]
    with _random_states(next(model.parameters()).device):
        try:
            model.train()
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, owned in buffers:
                module._buffers.clear()
                module._buffers.update(owned)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
            for module, was in training.items():
                module.training = was


@contextmanager
def _random_states(device: torch.device) -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy: batches may be drawn and augmented with any of them."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type in ("cpu", "meta") else [device]
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
