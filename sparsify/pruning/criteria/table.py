"""Criteria: functions that score weights, larger = keep.

A criterion is any function `criterion(weights, context)`. `weights` maps the name of each weight that is pruned to its
values, detached, in `state_dict` order; `context` holds what else a score may be made of. It returns a score for every
entry: a mapping of the same names to float tensors of the same shapes. One of the user's own is passed from Python:

    def magnitude_per_layer_norm(weights, context):
        return {name: weight.abs() / weight.norm() for name, weight in weights.items()}

    sparsify.Pruner(model, {"criterion": magnitude_per_layer_norm, "scope": "global", "sparsity": 0.9}, total_steps)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...errors import SparsifyError
from .gradients import LossFunction, summed_gradients
from .hessian_gradient import hessian_gradient_products
from .synflow import synaptic_flow


class Absolute(NamedTuple):
    """Scores that are |values|, taken piece by piece: a criterion that returns it makes no copy of all weights."""

    values: Tensor


@dataclass(frozen=True)
class Context:
    """What a criterion may use besides the weights.

    `model`: the whole model; `masks`: the present masks by weight name, not to be changed; `step`: optimiser steps
    done; `generator`: a CPU generator that starts from the same state at every update of a cycle, so that random scores
    do not change within it; `batches` and `loss_fn`: what was handed to `Pruner.start`, or None; `options`: what else
    the recipe's criterion section says; `example_input`: an input of the model's, of which only shape and kind count.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    step: int
    generator: torch.Generator
    batches: Iterable[Any] | None = None
    loss_fn: LossFunction | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    example_input: Any = None


Scores = Mapping[str, Tensor | Absolute]
Criterion = Callable[[Mapping[str, Tensor], Context], Scores]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@takes(criterion=Callable)
def needs_data(criterion: _Function) -> _Function:
    """Mark a criterion that uses `context.batches`: a pruner then refuses to go on without them from the first step."""
    criterion.needs_data = True  # type: ignore[attr-defined]
    return criterion


def needs_input(criterion: _Function) -> _Function:
    """Mark a criterion that uses `context.example_input`; without one a pruner takes the first batch for it."""
    criterion.needs_input = True  # type: ignore[attr-defined]
    return criterion


def magnitude(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w|. Han et al. 2015 (Learning both Weights and Connections), section 3."""
    return {name: Absolute(weight) for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by uniform random numbers, the same for every device; within a cycle they do not change."""
    return {
        name: torch.rand(weight.shape, generator=context.generator).to(weight.device)
        for name, weight in weights.items()
    }


@needs_data
def snip(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w * dL/dw|, the gradient summed over the batches, in train mode, under the present masks.

    A weight that is masked has no influence, so no gradient and the score 0. Leaves weights, gradients, buffers,
    training flags and random states as they were. Lee et al. 2019 (SNIP), equations 5 and 6; the division by the sum
    of all scores in equation 6 changes no order and is left out.
    """
    gradients = summed_gradients(context.model, weights, *_data(context, "snip"))
    return {name: Absolute(gradients[name].mul_(weight)) for name, weight in weights.items()}


@needs_data
def grasp(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by w * Hg, gradient and Hessian summed over the batches, in train mode, under the present masks.

    Wang et al. 2020 (Picking Winning Tickets Before Training by Preserving Gradient Flow), equation 8, where
    S(-w) = -w * Hg says by how much the squared norm of the gradient grows when w goes, and the weights of the largest
    S are removed; larger = keep makes that -S. The option `temperature`, 200 as in the authors' code, divides the
    model's output before the loss. Of the normalisation in their code nothing is left, since it changes no order.
    Leaves the model as `snip` does.
    """
    batches, loss_fn = _data(context, "grasp")
    temperature = context.options.get("temperature", 200.0)
    products = hessian_gradient_products(context.model, weights, batches, loss_fn, temperature=temperature)
    return {name: products[name].mul_(weight) for name, weight in weights.items()}


@needs_input
def synflow(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w * dR/dw|, R the sum of the outputs of the positive network for an input of ones.

    Tanaka et al. 2020 (Pruning Neural Networks without any Data by Iteratively Conserving Synaptic Flow), equation 2
    and algorithm 1, under the present masks; `synaptic_flow` says what is made of norms and biases. The rounds of the
    algorithm are those of the pruner: see `rounds` in the criterion section. Leaves the model as it was.
    """
    if context.example_input is None:
        raise SparsifyError("criterion 'synflow' needs an input's shape: Pruner(..., example_input=...)")
    return synaptic_flow(context.model, weights, context.example_input)


def _data(context: Context, name: str) -> tuple[Iterable[Any], LossFunction]:
    if context.batches is None or context.loss_fn is None:
        raise SparsifyError(f"criterion '{name}' needs data: call pruner.start(batches, loss_fn) first")
    return context.batches, context.loss_fn


# name -> criterion. A new one is a function above, a row here and a row in settings.sections.CRITERION_ROWS.
CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}
