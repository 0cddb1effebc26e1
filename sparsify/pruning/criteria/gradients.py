"""Gradients of a loss with respect to the effective weights; the model's state is restored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import SparsifyError
from ...preserve import keep_random_states
from ...processes.ranks import Group, average_over, sum_over, together, total
from ...processes.shards import is_sharded
from ...surgery.mask_state.masks import MaskedWeight, all_masked_parameters, effective_weight, masked_parameters
from ..preserve_state import preserve_state
from .shard_gradients import gradients_of_shards

# loss_fn(model, batch) returns the loss of one batch, a tensor of one element.
LossFunction = Callable[[nn.Module, Any], Tensor]


def on_model_and_batch(loss_fn: Callable[..., Tensor]) -> LossFunction:
    """Return `loss_fn` as a function of (model, batch).

    It already is one if its first parameter is called `model`, `net` or `m` or its second `batch`, and if batches are
    not pairs. Otherwise it is a loss of (outputs, targets), such as F.cross_entropy or nn.CrossEntropyLoss(), and
    batches are (inputs, targets).
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


def with_first_input(batches: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    """Return the batches (an iterator as a list) and the input of the first one: the first part of a pair.

    Random states are restored. Raises SparsifyError if there is no batch or its input is not a tensor.
    """
    batches = list(batches) if isinstance(batches, Iterator) else batches
    with keep_random_states():
        batch = next(iter(batches), None)
    example = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    if not isinstance(example, Tensor):
        raise SparsifyError(
            f"pruner.start: a batch has no tensor as its input, but {type(example).__name__}; "
            "give Pruner an example_input"
        )
    return batches, example


class Gradient(NamedTuple):
    """dL/dw of one batch for the weight `name`; `tensor` is its parameter or a weight computed from that."""

    name: str
    tensor: Tensor
    value: Tensor


def summed_gradients(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    squared: bool = False,
    training: bool = True,
    group: Group = None,
) -> dict[str, Tensor]:
    """Return dL/dw summed over `batches` for each named effective weight, float32 or wider, shaped like it.

    With `squared`, the squares of the batches' gradients are summed. The model runs in train mode (eval mode if
    `training` is False) under its present masks; masked entries have gradient 0. In a `group` of processes, the n-th
    batches of all count as one batch, whose gradient is the mean of theirs; all processes get the same bits. Weights,
    gradients, buffers, training flags and random states are restored. Raises SparsifyError if there is no batch, or if
    a loss is not a tensor of one element that depends on the weights.
    """
    weights = named_weights(model, names)
    if any(is_sharded(weight.parameter) for weight in weights.values()):
        return gradients_of_shards(model, weights, batches, loss_fn, group)
    sums = zeros_like(weights)
    number = 0
    with preserve_state(model, [weight.parameter for weight in weights.values()], training=training):
        if squared:
            for batch in in_step(batches, group):
                number += 1
                of_batch = zeros_like(weights)
                with together(group):
                    add_gradients(of_batch, model, weights, batch, loss_fn)
                average_over(of_batch.values(), group)
                for name, gradient in of_batch.items():
                    sums[name].addcmul_(gradient, gradient)
        else:
            with together(group):
                for batch in batches:
                    number += 1
                    add_gradients(sums, model, weights, batch, loss_fn)
            number = total(number, group)
            average_over(sums.values(), group)
    if number == 0:
        raise SparsifyError("pruner.start: there is no batch to take gradients from")
    return sums


def squared_of_samples(
    model: nn.Module, names: Iterable[str], batches: Iterable[Any], loss_fn: LossFunction, group: Group = None
) -> dict[str, Tensor]:
    """Return the squared gradients of single samples, summed over the samples of all processes.

    The model runs in eval mode, where samples do not depend on each other; otherwise as `summed_gradients`.
    """
    with together(group):
        sums = summed_gradients(model, names, single_samples(batches), loss_fn, squared=True, training=False)
    sum_over(sums.values(), group)
    return sums


def in_step(batches: Iterable[Any], group: Group) -> Iterator[Any]:
    """Yield the batches, then None while other processes still have some."""
    if group is None:
        yield from batches
        return
    own, missing = iter(batches), object()
    while True:
        with together(group):
            batch = next(own, missing)
        if not total(batch is not missing, group):
            return
        yield None if batch is missing else batch


def add_gradients(
    sums: Mapping[str, Tensor],
    model: nn.Module,
    weights: Mapping[str, MaskedWeight],
    batch: Any,
    loss_fn: LossFunction,
) -> None:
    """Add the gradients of one batch to `sums`, in place; None adds nothing."""
    if batch is not None:
        for name, _, gradient in batch_gradients(model, weights, batch, loss_fn):
            sums[name].add_(gradient)


def single_samples(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the samples of all batches, each as a batch of one: tensors, or tuples and lists of tensors.

    Raises SparsifyError for a batch of anything else, or of tensors that differ in their first dimension.
    """
    for batch in batches:
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
        if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
            raise SparsifyError(
                f"criterion 'fisher' takes gradients of single samples: a batch is a tensor or a pair of tensors, "
                f"not {type(batch).__name__} of {', '.join(type(part).__name__ for part in parts) or 'nothing'}"
            )
        sizes = [len(part) for part in parts]
        if len(set(sizes)) > 1:
            raise SparsifyError(f"criterion 'fisher': the tensors of a batch hold {sizes} samples; equal ones needed")
        for index in range(sizes[0]):
            one = [part[index : index + 1] for part in parts]
            yield tuple(one) if isinstance(batch, (tuple, list)) else one[0]


def named_weights(model: nn.Module, names: Iterable[str]) -> dict[str, MaskedWeight]:
    """Return the masked weights of these names, in `state_dict` order."""
    wanted = set(names)
    return {name: weight for name, weight in masked_parameters(model).items() if name in wanted}


def zeros_like(weights: Mapping[str, MaskedWeight]) -> dict[str, Tensor]:
    """Return zeros shaped like each weight, float32 or wider."""
    parameters = {name: weight.parameter for name, weight in weights.items()}
    return {
        name: torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        for name, parameter in parameters.items()
    }


def batch_gradients(
    model: nn.Module,
    weights: Mapping[str, MaskedWeight],
    batch: Any,
    loss_fn: LossFunction,
    *,
    create_graph: bool = False,
) -> list[Gradient]:
    """Return the gradients of the loss of one batch for effective weights; a weight without influence has none.

    A weight that a module computes several times has one gradient for each. With `create_graph` the values can be
    differentiated again. Raises SparsifyError if the loss is not a tensor of one element with a gradient.
    """
    computed = {name for name, weight in weights.items() if differs_from_parameter(weight)}
    taps = _Taps(model, computed)
    with taps:
        loss = loss_fn(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise SparsifyError("loss_fn must return the loss of the batch, a tensor of one element with a gradient")
    places = [(name, weight.parameter) for name, weight in weights.items()] + taps.found
    values = torch.autograd.grad(
        loss.reshape(()), [tensor for _, tensor in places], allow_unused=True, create_graph=create_graph
    )
    tapped = {name for name, _ in taps.found}
    found = []
    for index, ((name, tensor), value) in enumerate(zip(places, values, strict=True)):
        raw = index < len(weights) and name in computed
        # A computed weight with a gradient went through a masked operation, which _Taps recorded.
        assert value is None or not raw or name in tapped, f"{name}: gradient not found"
        if value is not None and not raw:
            found.append(Gradient(name, tensor, value))
    return found


def differs_from_parameter(weight: MaskedWeight) -> bool:
    """Return whether the weight that a module uses is another tensor, computed from this parameter."""
    return effective_weight(weight).data_ptr() != weight.parameter.data_ptr()


class _Taps(TorchFunctionMode):
    """Finds the effective weights that modules compute, at the operation that applies the mask."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.found: list[tuple[str, Tensor]] = []
        wanted = set(names)
        first = {id(weight.parameter): name for name, weight in masked_parameters(model).items()}
        every = {id(weight.mask): first[id(weight.parameter)] for weight in all_masked_parameters(model)}
        self.names = {mask: name for mask, name in every.items() if name in wanted}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.names.get(id(args[0])) if func is torch.where and len(args) == 3 else None
        if name is not None and isinstance(args[1], Tensor) and args[1].requires_grad:
            # A new view, so that other uses of the weight in the module do not count in its gradient.
            weight = args[1].view_as(args[1])
            self.found.append((name, weight))
            args = (args[0], weight, args[2])
        return func(*args, **(kwargs or {}))
