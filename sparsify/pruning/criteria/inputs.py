"""Norms of the inputs that each weight is multiplied with, recorded by hooks while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import SparsifyError
from ...processes.ranks import Group, sum_over, together
from ...surgery.mask_state.masks import all_masked_weights, is_computed, masked_weights
from ..preserve_state import preserve_state
from .gradients import LossFunction
from .product_inputs import ProductInputs

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def input_norms(
    model: nn.Module, names: Iterable[str], batches: Iterable[Any], loss_fn: LossFunction, group: Group = None
) -> dict[str, Tensor]:
    """Return for each entry the L2 norm, over all batches, of the inputs it is multiplied with, float64.

    The batches of all processes of a `group` count. For a linear layer, and for a matrix that another forward
    multiplies with (Conv1D of transformers), that is the norm of the input feature over all rows; for a convolution the
    norm over the positions that the kernel's entry meets; for a transposed convolution the norm of the input channel.
    The model runs in eval mode under its present masks; its state is restored. Raises SparsifyError, naming it, for a
    weight whose inputs cannot be recorded: one that any other operation or another forward reads, or whose layer does
    not run.
    """
    with together(group):
        sums = _squared_sums(model, set(names), batches, loss_fn)
    if group is not None:
        sums = {name: one.contiguous() for name, one in sums.items()}
        sum_over(sums.values(), group)
    return {name: one.sqrt() for name, one in sums.items()}


def _squared_sums(
    model: nn.Module, wanted: set[str], batches: Iterable[Any], loss_fn: LossFunction
) -> dict[str, Tensor]:
    first = {id(weight.parameter): name for name, weight in masked_weights(model).items()}
    sums: dict[str, Tensor] = {}
    readers, products = _OtherReaders(), ProductInputs(sums)
    count = 0
    with ExitStack() as hooks:
        for weight in all_masked_weights(model):
            name = first[id(weight.parameter)]
            if name not in wanted:
                continue
            if getattr(weight.module, "masked_kind", "") != "direct":
                if is_computed(weight) or weight.mask.dim() != 2:
                    raise _unseen(name, f"{weight.module} reads it in a forward of its own")
                products.watch(weight.mask, name)
                continue
            hooks.enter_context(weight.module.register_forward_pre_hook(_adder(sums, name)))
            for handle in readers.leave_out(weight.module, weight.mask, name):
                hooks.enter_context(handle)
        with preserve_state(model, [], training=False), torch.no_grad(), readers, products:
            for batch in batches:
                count += 1
                loss_fn(model, batch)
                products.forget()
    if count == 0:
        raise SparsifyError("pruner.start: there is no batch to take inputs from")
    for name in products.unseen:
        raise _unseen(name, "something reads it that is no product of inputs with a matrix")
    for name in wanted - sums.keys():
        raise _unseen(name, "its layer was not called")
    for name in readers.found:
        raise _unseen(name, "another forward reads it as well")
    return {name: sums[name] for name in first.values() if name in wanted}


class _OtherReaders(TorchFunctionMode):
    """Records the weights whose masks are applied outside of the forwards that own them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._names: dict[int, str] = {}
        self._running: list[int] = []  # the masks of the modules that run

    def leave_out(self, module: nn.Module, mask: Tensor, name: str) -> list[Any]:
        """Return the handles of hooks that exclude what `module` itself reads."""
        self._names[id(mask)] = name
        return [
            module.register_forward_pre_hook(lambda *_: self._running.append(id(mask))),
            module.register_forward_hook(self._ended, always_call=True),
        ]

    def _ended(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = id(args[0]) if func is torch.where and len(args) == 3 else None
        if place in self._names and place not in self._running:
            self.found[self._names[place]] = None
        return func(*args, **(kwargs or {}))


def _unseen(name: str, reason: str) -> SparsifyError:
    return SparsifyError(
        f"criterion 'wanda': the inputs of {name} cannot be seen: {reason}; leave it dense with 'ignore'"
    )


def _adder(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        squares = _squares(module, inputs[0].detach().to(torch.float64))
        sums[name] = sums[name] + squares if name in sums else squares

    return add


def _squares(module: Any, input: Tensor) -> Tensor:
    """Return the sum of the squared inputs that each entry of a module's weight is multiplied with, shaped like it."""
    shape = module.weight.shape
    if isinstance(module, nn.Linear):
        return input.square().reshape(-1, shape[1]).sum(0).expand(shape)
    dimensions = len(module.kernel_size)
    if input.dim() == dimensions + 1:  # without a batch
        input = input[None]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        channels = input.square().flatten(2).sum((0, 2))
        return channels.reshape(-1, *[1] * (dimensions + 1)).expand(shape)
    padding = module.padding
    if module.padding_mode != "zeros":
        input, padding = F.pad(input, module._reversed_padding_repeated_twice, module.padding_mode), 0
    squares = input.square().sum(0, keepdim=True)
    # The gradient of the summed outputs for a depthwise kernel is, at each entry, the sum of its inputs.
    with torch.enable_grad():
        kernel = squares.new_zeros((shape[1] * module.groups, 1, *module.kernel_size), requires_grad=True)
        met = _CONV[dimensions](squares, kernel, None, module.stride, padding, module.dilation, kernel.shape[0])
        (by_channel,) = torch.autograd.grad(met.sum(), kernel)
    by_group = by_channel.reshape(module.groups, 1, *shape[1:])
    return by_group.expand(-1, shape[0] // module.groups, *shape[1:]).reshape(shape)
