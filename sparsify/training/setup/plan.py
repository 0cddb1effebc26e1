"""The plan of a training: its steps, mask updates and learning rates, computed before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...datasets import DATASETS
from ...pruning.schedules import Update, update_plan
from ..recipe.lr_schedules import learning_rate_factor
from ..recipe.read import Recipe


@dataclass(frozen=True)
class TrainingPlan:
    """The optimiser steps of an epoch and of the whole training, every mask update, and the learning rate.

    `lr` maps a step (0 to `total_steps` - 1) to its learning rate.
    """

    steps_per_epoch: int
    total_steps: int
    updates: list[Update]
    lr: Callable[[int], float]


def plan_training(recipe: Recipe) -> TrainingPlan:
    """Return the plan of `recipe`. The model is built only where the size of the data cannot be known without it.

    Raises SparsifyError if the times do not fit into the training.
    """
    settings = recipe.train
    steps_per_epoch = -(-_batches(recipe) // settings.accumulate)
    total_steps = settings.total_steps(steps_per_epoch)
    factor = learning_rate_factor(settings.lr_schedule, total_steps, steps_per_epoch)
    updates = update_plan(recipe.prune, total_steps, steps_per_epoch) if recipe.prune else []
    return TrainingPlan(steps_per_epoch, total_steps, updates, lambda step: settings.optimizer.lr * factor(step))


def _batches(recipe: Recipe) -> int:
    data = recipe.data
    if data.name in DATASETS:
        from ..batches.resident import count_used

        count = min(DATASETS[data.name].train_count, data.limit or DATASETS[data.name].train_count)
        return count_used(count, data.batch_size, shuffle=True, drop_last=data.drop_last)[1]
    if recipe.own_data is not None:
        from ..data.own_data import named_data

        return len(named_data(recipe.own_data, data, seed=recipe.train.seed).train)
    from ...models import build_model
    from ..data.datasets import count_classes, load_data

    model = build_model(recipe.model.name, **{**recipe.model.arguments, "num_classes": count_classes(data)})
    return len(load_data(data, model, seed=recipe.train.seed).train)
