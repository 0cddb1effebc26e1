"""Criteria: functions that score weights, larger = keep.

A criterion is any function `criterion(weights, context)`. `weights` maps the name of each pruned weight to its values,
detached, in `state_dict` order; `context` has everything else. It returns a score for every entry: a mapping of the
same names to float tensors of the same shapes. Pass your own from Python:

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
    """Scores |values|, computed in chunks by the selection, so that a criterion needs no copy of all weights."""

    values: Tensor


@dataclass(frozen=True)
class Context:
    """What a criterion may use besides the weights.

    `model`: the whole model; `masks`: the present masks by weight name, read-only; `step`: optimiser steps done;
    `generator`: a CPU generator with the same state at every update of a cycle, so that random scores do not change
    within it; `batches` and `loss_fn`: the arguments of `Pruner.start`; `options`: the other keys of the criterion
    section; `example_input`: an input of the model, of which only shape and dtype matter; `step_sums`: the sums of
    criteria that add over training steps, by weight name, empty before the first; `group`: the processes that train the
    model, None for a single one.
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

    The pruner then raises SparsifyError if `start` was given no batches. Several processes score with their own batches
    each, and the mean of their scores is used.
    """
    criterion.needs_data = True  # type: ignore[attr-defined]
    return criterion


def adds_over_steps(criterion: _Function) -> _Function:
    """Mark a criterion that uses `context.step_sums`; at an update before the first step it needs data."""
    criterion.adds_over_steps = True  # type: ignore[attr-defined]
    return criterion


def needs_input(criterion: _Function) -> _Function:
    """Mark a criterion that uses `context.example_input`, by default the input of the first batch."""
    criterion.needs_input = True  # type: ignore[attr-defined]
    return criterion


def magnitude(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w|. Han et al. 2015 (Learning both Weights and Connections), section 3."""
    return {name: Absolute(weight) for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by uniform random numbers, the same on every device and at every update of a cycle."""
    generator = context.generator
    return {name: torch.rand(one.shape, generator=generator).to(one.device) for name, one in weights.items()}


@needs_data
def snip(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w * dL/dw|, the gradient summed over the batches, in train mode, under the present masks.

    A masked weight has gradient 0 and score 0. Weights, gradients, buffers, training flags and random states are
    restored. Lee et al. 2019 (SNIP), equations 5 and 6, without the division by the sum of all scores, which does not
    change the order.
    """
    gradients = summed_gradients(context.model, weights, *_data(context, "snip"), group=context.group)
    return {name: Absolute(gradients[name].mul_(weight)) for name, weight in weights.items()}


@needs_data
def grasp(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by w * Hg, gradient and Hessian summed over the batches, in train mode, under the present masks.

    Wang et al. 2020 (Picking Winning Tickets Before Training by Preserving Gradient Flow), equation 8: removing w
    increases the squared norm of the gradient by S(-w) = -w * Hg, and the weights of the largest S are removed; the
    score is -S. The option `temperature`, 200 as in the authors' code, divides the model's output before the loss;
    their normalisation, which does not change the order, is left out. The model is restored as by `snip`.
    """
    data, temperature = _data(context, "grasp"), context.options.get("temperature", 200.0)
    products = hessian_gradient_products(context.model, weights, *data, temperature=temperature, group=context.group)
    return {name: products[name].mul_(weight) for name, weight in weights.items()}


@needs_input
def synflow(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w * dR/dw|, R the sum of the outputs of the positive network for an input of ones.

    Tanaka et al. 2020 (Pruning Neural Networks without any Data by Iteratively Conserving Synaptic Flow), equation 2
    and algorithm 1, under the present masks; for norms and biases see `synaptic_flow`. The rounds of the algorithm are
    the pruner's (`rounds` in the criterion section). The model is not changed.
    """
    if context.example_input is None:
        raise SparsifyError("criterion 'synflow' needs an input's shape: Pruner(..., example_input=...)")
    return synaptic_flow(context.model, weights, context.example_input)


@needs_data
def taylor(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by (w * dL/dw)^2, summed over the batches, which gives the order of the mean.

    Molchanov et al. 2019 (Importance Estimation for Neural Network Pruning), section 3.1, the first-order expansion, in
    train mode under the present masks. Their importance of a filter is the sum over its entries: granularity unit with
    `aggregate: sum`. The model is restored as by `snip`.
    """
    squares = summed_gradients(context.model, weights, *_data(context, "taylor"), squared=True, group=context.group)
    return {name: squares[name].mul_(weight.square()) for name, weight in weights.items()}


@needs_data
def fisher(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by F w^2 / 2, F the diagonal of the empirical Fisher matrix: the mean squared gradient of a sample.

    Theis et al. 2018 (Faster gaze prediction with dense networks and Fisher pruning), section 2.1; summed instead of
    averaged, which gives the same order. Each sample is run by itself, forward and backward, in eval mode, where
    samples do not depend on each other, under the present masks. The model is restored as by `snip`.
    """
    batches, loss_fn = _data(context, "fisher")
    squares = squared_of_samples(context.model, weights, batches, loss_fn, context.group)
    return {name: squares[name].mul_(weight.square()).div_(2) for name, weight in weights.items()}


@adds_over_steps
def movement(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by -(sum of w * dL/dw over the steps of training): negative where training moves them to zero.

    Sanh et al. 2020 (Movement Pruning), equation 5 without the constant factor, summed from `Pruner.start` on with the
    gradient that the optimiser uses. That is 0 for a removed weight, whose score stays constant (the paper's
    straight-through estimator changes it). At an update before the first step the sum is taken over the batches of
    `Pruner.start`, in train mode under the present masks. The model is restored as by `snip`.
    """
    if context.step and not context.step_sums:
        seen = f"no optimiser of torch was seen in {context.step} steps"
        warnings.warn(f"criterion 'movement': {seen}; scores are of the batches alone", SparsityWarning, stacklevel=2)
    if context.step_sums:  # no copy: nothing is added to them while masks are updated
        return {name: context.step_sums[name] for name in weights}
    gradients = summed_gradients(context.model, weights, *_data(context, "movement"), group=context.group)
    return {name: gradients[name].mul_(weight).neg_() for name, weight in weights.items()}


@needs_data
def wanda(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by |w| * the L2 norm of their inputs over the batches.

    Sun et al. 2024 (A Simple and Effective Pruning Approach for Large Language Models), equation 1, who compare within
    each output: scope filter. For the inputs, and the error where they cannot be recorded, see `input_norms`.
    """
    norms = input_norms(context.model, weights, *_data(context, "wanda"), context.group)
    return {name: norms[name].mul_(weight.abs()) for name, weight in weights.items()}


def lamp(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score weights by w^2 / the sum of v^2 over the weights v of their layer that are at least as large.

    Lee et al. 2021 (Layer-adaptive sparsity for the Magnitude-based Pruning), equation 5, under the present masks. For
    scope global; within a layer the order is that of `magnitude`.
    """
    return {name: layer_adaptive(weight, context.masks[name]) for name, weight in weights.items()}


def fpgm(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score units by the sum of their Euclidean distances to the others of the layer, under the present masks.

    He et al. 2019 (Filter Pruning via Geometric Median), equation 6: filters near the geometric median are removed.
    """
    return summed_distances(context.model, weights, context.masks)


@needs_input
def bn_scale(weights: Mapping[str, Tensor], context: Context) -> Scores:
    """Score units by |scale| in the norm right after their layer. Liu et al. 2017 (Network Slimming), section 3.

    The norm is the one whose input is the layer's output; a weight without one is an error. The paper's sparsity
    penalty on the scales is not included: add it to the training loss.
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
