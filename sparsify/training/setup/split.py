"""Checks that the batches of a recipe can be split over several processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import SparsifyError
from ...processes.ranks import Ranks
from ..batches.types import Data
from ..folder.same_recipe import differences
from ..recipe.read import Recipe
from ..recipe.settings import DataSettings, TrainSettings

# Machines may keep data and plugins in other places. Logging and saving are not free: all processes take part in them.
_OF_A_PROCESS = ("data.dir", "data.workers", "train.device", "plugin.name")


def check_batch_size(data: DataSettings, size: int) -> None:
    """Raise SparsifyError unless a batch makes equal parts for `size` processes."""
    if data.batch_size % size:
        below, above = data.batch_size // size * size, -(-data.batch_size // size) * size
        nearest = f"{below} or {above}" if below else str(above)
        raise SparsifyError(
            f"data.batch_size: {data.batch_size} images make no equal parts for {size} processes; take {nearest}"
        )


def check_split(
    data: DataSettings, model: nn.Module, ranks: Ranks, settings: TrainSettings, device: torch.device
) -> None:
    """Raise SparsifyError if batch norm cannot train on a process's part of a batch, or cannot be synchronised here."""
    if ranks.size == 1 or not has_batch_norm(model):
        return
    if settings.sync_batch_norm:
        if device.type != "cuda":
            raise SparsifyError(
                f"train.sync_batch_norm: torch has it for GPUs only, not for {device.type}; leave it out, and every "
                "process normalises with its own part of a batch"
            )
    elif data.batch_size < 2 * ranks.size:
        raise SparsifyError(
            f"data.batch_size: {data.batch_size} images over {ranks.size} processes leave one for each, on which batch "
            f"norm cannot train; take {2 * ranks.size} at least"
        )


def check_same_recipe(recipe: Recipe, ranks: Ranks) -> None:
    """Raise SparsifyError, which names the keys, on all processes if they were given different recipes or plugins."""
    if ranks.size == 1:
        return
    first = ranks.of_first(recipe.to_yaml())
    with ranks.together():
        if different := differences(first, recipe, _OF_A_PROCESS):
            raise SparsifyError(f"train: the processes have different recipes: {different}; give all of them one")


def check_same_work(model: nn.Module, data: Data, ranks: Ranks) -> None:
    """Raise SparsifyError on all processes if their models or the sizes of their data sets differ."""
    if ranks.size == 1:
        return
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    own = {"training images": data.train_count, "test images": data.test_count, "classes": data.num_classes}
    first, first_shapes = ranks.of_first((own, shapes))
    with ranks.together():
        listed = [f"{own[name]} {name} instead of {first[name]}" for name in own if own[name] != first[name]]
        if listed:
            raise SparsifyError(f"data: this process has {', '.join(listed)} of the first one; give all the same data")
        if shapes != first_shapes:
            odd = next((name for name, shape in shapes if (name, shape) not in first_shapes), "its order")
            raise SparsifyError(f"model: this process has another model than the first one: {odd} differs")


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model normalises over the images of a batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def processes_lines(data: DataSettings, model: nn.Module, ranks: Ranks, settings: TrainSettings) -> list[str]:
    """Return the lines on several processes that are printed before training starts."""
    if ranks.size == 1:
        return shard_lines(settings)
    lines = [f"{ranks.size} processes: {data.batch_size // ranks.size} of a batch's {data.batch_size} images on each"]
    if has_batch_norm(model):
        lines.append(
            "  batch norm takes its statistics over all processes"
            if settings.sync_batch_norm
            else "  batch norm: each process takes the statistics of its own images, and those of the first are kept: "
            "results depend on the number of processes"
        )
    if settings.shard:
        lines.append("  weights, gradients and the optimiser's state are in parts, one on each (train.shard)")
    return lines


def shard_lines(settings: TrainSettings) -> list[str]:
    """Return a line that a single process does not cut the model, if the recipe asks for it."""
    return ["train.shard: one process trains the whole model; several take a part of it each"] if settings.shard else []
