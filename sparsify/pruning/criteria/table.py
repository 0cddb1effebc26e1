"""Criteria: functions that score weights, larger = keep.

A criterion is any function `criterion(weights, context)`. `weights` maps the name of each weight that is pruned to its
values, detached, in `state_dict` order; `context` holds what else a score may be made of. It returns a score for every
entry: a mapping of the same names to float tensors of the same shapes. One of the user's own is passed from Python:

    def magnitude_per_layer_norm(weights, context):
        return {name: weight.abs() / weight.norm() for name, weight in weights.items()}

    sparsify.Pruner(model, {"criterion": magnitude_per_layer_norm, "scope": "global", "sparsity": 0.9}, total_steps)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...errors import SparsifyError
from ...processes.ranks import Group
from ..report import SparsityWarning
from .gradients import LossFunction, squared_of_samples, summed_gradients
from .hessian_gradient import hessian_gradient_products
from .inputs import input_norms
from .synflow import synaptic_flow
from .unit_scores import layer_adaptive, norm_scales, summed_distances


class Absolute(NamedTuple):
    """Scores that are |values|, taken piece by piece: a criterion that returns it makes no copy of all weights."""

    values: Tensor


@dataclass(frozen=True)
class Context:
    """What a criterion may use besides the weights.

    `model`: the whole model; `masks`: the present masks by weight name, not to be changed; `step`: optimiser steps
    done; `generator`: a CPU generator that starts from the same state at every update of a cycle, so that random scores
    do not change within it; `batches` and `loss_fn`: what was handed to `Pruner.start`, or None; `options`: what else
    the recipe's criterion section says; `example_input`: an input of the model's, of which only shape and kind count;
    `step_sums`: of criteria that add over the steps of training, the sums by weight name, empty before the first;
    `group`: the processes that train the model, None for one alone.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    step: int
    generator: torch.Generator
    batches: Iterable[Any] | None = None
    loss_fn: LossFunction | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    example_input: Any = None
    step_sums: Mapping[str, Tensor] = field(default_factory=dict)
    group: Group = None


Scores = Mapping[str, Tensor | Absolute]
Criterion = Callable[[Mapping[str, Tensor], Context], Scores]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@takes(criterion=Callable)
def needs_data(criterion: _Function) -> _Function:
    """Return `criterion`, marked as one that uses `context.batches`.

    The pruner then raises SparsifyError if `start` was given no batches. Of several processes each scores with its own
    batches, and the mean of their scores counts.
    """
    criterion.needs_data = True  # type: ignore[attr-defined]
    return criterion


def adds_over_steps(criterion: _Function) -> _Function:
    """Mark a criterion that uses `context.step_sums`; at an update before the first step it needs data."""
    criterion.adds_over_steps = True  # type: ignore[attr-defined]
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
    gradients = summed_gradients(context.model, weights, *_data(context, "snip"), group=context.group)
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
    products = hessian_gradient_products(
        context.model, weights, batches, loss_fn, temperature=temperature, group=context.group
    )
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


@needs_data
def taylor(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by (w * dL/dw)^2, averaged over the batches (summed here, which is the same order).

    Molchanov et al. 2019 (Importance Estimation for Neural Network Pruning), section 3.1, the first-order expansion, in
    train mode under the present masks. Their importance of a filter is the sum over its entries: granularity unit with
    `aggregate: sum`. Leaves the model as `snip` does.
    """
    squares = summed_gradients(context.model, weights, *_data(context, "taylor"), squared=True, group=context.group)
    return {name: squares[name].mul_(weight.square()) for name, weight in weights.items()}


@needs_data
def fisher(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by F w^2 / 2, F the diagonal of the empirical Fisher matrix: the mean squared gradient of a sample.

    Theis et al. 2018 (Faster gaze prediction with dense networks and Fisher pruning), section 2.1; the mean is left as
    a sum, which is the same order. Each sample is run by itself, forward and backward, in eval mode, in which samples
    do not depend on each other, under the present masks. Leaves the model as `snip` does.
    """
    batches, loss_fn = _data(context, "fisher")
    squares = squared_of_samples(context.model, weights, batches, loss_fn, context.group)
    return {name: squares[name].mul_(weight.square()).div_(2) for name, weight in weights.items()}


@adds_over_steps
def movement(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by -(sum of w * dL/dw over the steps of training): negative where training moves them to zero.

    Sanh et al. 2020 (Movement Pruning), equation 5 (the constant factor changes no order and is left out), from
    `Pruner.start` on, with the gradient that the optimiser meets, which is 0 for a weight that is removed: its score
    stands still (the paper's straight-through estimator moves it on). Where there is no sum, at an update before the
    first step, it is taken over the batches handed over, in train mode under the present masks. Leaves the model as
    `snip` does.
    """
    if context.step and not context.step_sums:
        seen = f"no optimiser of torch was seen in {context.step} steps"
        warnings.warn(f"criterion 'movement': {seen}; scores are of the batches alone", SparsityWarning, stacklevel=2)
    if context.step_sums:  # the present values: nothing adds to them while masks are updated
        return {name: context.step_sums[name] for name in weights}
    gradients = summed_gradients(context.model, weights, *_data(context, "movement"), group=context.group)
    return {name: gradients[name].mul_(weight).neg_() for name, weight in weights.items()}


@needs_data
def wanda(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w| * the L2 norm of their inputs over the batches.

    Sun et al. 2024 (A Simple and Effective Pruning Approach for Large Language Models), equation 1, who compare within
    each output: scope filter. `input_norms` says what the inputs are, and where they cannot be seen, which is an error.
    """
    norms = input_norms(context.model, weights, *_data(context, "wanda"), context.group)
    return {name: norms[name].mul_(weight.abs()) for name, weight in weights.items()}


def lamp(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by w^2 / the sum of v^2 over the weights v of their layer that are at least as large.

    Lee et al. 2021 (Layer-adaptive sparsity for the Magnitude-based Pruning), equation 5, under the present masks. Made
    for scope global; within a layer the order is that of `magnitude`.
    """
    return {name: layer_adaptive(weight, context.masks[name]) for name, weight in weights.items()}


def fpgm(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score units by the sum of their Euclidean distances to the others of the layer, under the present masks.

    He et al. 2019 (Filter Pruning via Geometric Median), equation 6: the filters nearest to the geometric median go.
    """
    return summed_distances(context.model, weights, context.masks)


@needs_input
def bn_scale(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score units by |scale| in the norm right after their layer. Liu et al. 2017 (Network Slimming), section 3.

    The norm is the one that takes the layer's output as it is; a weight without one is an error. The sparsity penalty
    of the paper on the scales is the training's: add it to the loss.
    """
    if context.example_input is None:
        raise SparsifyError("criterion 'bn_scale' needs an input: Pruner(..., example_input=...)")
    return norm_scales(context.model, weights, context.example_input)


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
    "taylor": taylor,
    "fisher": fisher,
    "movement": movement,
    "wanda": wanda,
    "lamp": lamp,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
}
