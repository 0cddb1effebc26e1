"""The Hessian of a loss times its gradient, for the effective weights; the model's state is restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import SparsifyError
from ...processes.ranks import Group, average_over, together
from ..preserve_state import preserve_state
from .gradients import LossFunction, batch_gradients, named_weights, summed_gradients, zeros_like


def hessian_gradient_products(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    temperature: float = 1.0,
    group: Group = None,
) -> dict[str, Tensor]:
    """Return H g for each named effective weight, float32 or wider, shaped like it.

    g is dL/dw and H the second derivative of the same loss, both summed over `batches`, over all named weights
    together; the model's output is divided by `temperature` before the loss. Each batch is run twice, in train mode
    under the present masks, with the same random numbers. For a `group` see `summed_gradients`. The model's state is
    restored. Raises SparsifyError as `summed_gradients` does, and for an operation without a second derivative.
    """
    names, batches = list(names), list(batches)
    with _divided_output(model, temperature), _twice_differentiable(model):
        gradients = summed_gradients(model, names, batches, loss_fn, group=group)
        weights = named_weights(model, names)
        products = zeros_like(weights)
        parameters = [weight.parameter for weight in weights.values()]
        with together(group), preserve_state(model, parameters):
            for batch in batches:
                found = batch_gradients(model, weights, batch, loss_fn, create_graph=True)
                zero = torch.zeros((), device=next(model.parameters()).device)
                along = sum(((gradients[name] * value).sum() for name, _, value in found), zero)
                if not along.requires_grad:  # the gradient is a constant
                    continue
                second = _differentiated(along, [tensor for _, tensor, _ in found])
                for (name, _, _), value in zip(found, second, strict=True):
                    if value is not None:
                        products[name].add_(value)
        average_over(products.values(), group)
    return products


def _differentiated(value: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, tensors, allow_unused=True)
    except RuntimeError as error:
        if "derivative" not in str(error) and "differentiate" not in str(error):
            raise
        raise SparsifyError(
            f"criterion 'grasp' needs second derivatives, and this model uses an operation that has none: {error}"
        ) from None


@contextmanager
def _divided_output(model: nn.Module, temperature: float) -> Iterator[None]:
    """Divide the model's output by `temperature` within the block."""

    def divide(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise SparsifyError(
                "criterion 'grasp' divides the model's output by its temperature, but that is no tensor: "
                f"{type(output).__name__}; set criterion: {{name: grasp, temperature: 1}}"
            )
        return output / temperature

    with nullcontext() if temperature == 1 else model.register_forward_hook(divide):
        yield


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Use kernels of attention and recurrent layers that have a second derivative."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
