"""Gradients for weights that fully_shard has cut over several processes: each process gets that of its part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SparsifyError
from ...processes.ranks import Group, gather, together
from ...surgery.mask_state.masks import MaskedWeight
from ..preserve_state import keep_gradients, preserve_state


def gradients_of_shards(
    model: nn.Module,
    weights: Mapping[str, MaskedWeight],
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    group: Group,
) -> dict[str, Tensor]:
    """Return dL/dw summed over `batches` for each weight, sharded like it; see `gradients.summed_gradients`.

    The n-th batches of all processes count as one, whose gradient is the mean of theirs. As every process takes part in
    every forward, all need the same number of batches.
    """
    with together(group):
        batches = list(batches)
        still = next((name for name, weight in weights.items() if not weight.parameter.requires_grad), None)
        if still is not None:
            raise SparsifyError(f"criterion: {still} takes no gradient; a sharded weight needs requires_grad")
    numbers = gather(len(batches), group)
    if len(set(numbers)) > 1 or not numbers[0]:
        raise SparsifyError(f"pruner.start: the processes have {numbers} batches; a sharded model needs one number")
    with keep_gradients(model):
        with preserve_state(model, []):
            for batch in batches:
                loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
        return {name: _gradient(weight.parameter) for name, weight in weights.items()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
