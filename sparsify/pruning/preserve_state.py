"""Context managers that restore a model after it ran for scores: buffers, flags and random states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..preserve import keep_modes, keep_random_states, keep_values
from ..surgery.mask_state.masks import all_masked_parameters


@contextmanager
def preserve_state(
    model: nn.Module, parameters: Iterable[nn.Parameter], *, training: bool | None = True
) -> Iterator[None]:
    """Run the block with gradients for `parameters` and the model in the mode `training` (None: its own modes).

    Afterwards modes, `requires_grad`, random states and all buffers but the masks are restored.
    """
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    masks = {id(weight.mask) for weight in all_masked_parameters(model)}
    held = [buffer for _, owned in buffers for buffer in owned.values() if buffer is not None]
    values = keep_values(buffer for buffer in held if id(buffer) not in masks)
    device = next(model.parameters()).device
    with keep_random_states(device), keep_modes(model), torch.inference_mode(False), torch.enable_grad(), values:
        try:
            if training is not None:
                model.train(training)
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, owned in buffers:
                module._buffers.clear()
                module._buffers.update(owned)


@contextmanager
def preserve_state_and_gradients(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """As `preserve_state`, in the model's own modes, but also restore `.grad`: for code that calls `backward()`."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with keep_gradients(model), preserve_state(model, parameters, training=None):
            yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)


@contextmanager
def keep_gradients(model: nn.Module) -> Iterator[None]:
    """Run the block without gradients in `.grad`, and restore those of before."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
