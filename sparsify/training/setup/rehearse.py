"""A dry run: everything that a run does before its first step, without writing anything."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...datasets import DATASETS, may_be_fetched
from ...preserve import keep_random_states
from ...surgery.conversion.fold import plain_copy
from ...surgery.mask_state.masks import masked_weights
from ..data.datasets import count_classes
from ..data.fetching import weights_are_here
from ..data.readers import check_place
from ..recipe.read import Recipe
from .own_model import built_on_meta
from .prepare import Prepared, prepare

# Where torchvision keeps what it downloads.
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@dataclass(frozen=True)
class Rehearsal:
    """What a run would start with: the size and cost of the dense model, and what was not tried (`left_out`) and why.

    `multiply_adds` are those of one image, None where the size of an image is not known; `bytes_file` estimates the
    sparse file, `bytes_dense` is the size of the dense one. `prepared` is None where the data are not downloaded yet.
    """

    parameters: int
    multiply_adds: int | None
    bytes_file: int
    bytes_dense: int
    prepared: Prepared | None
    left_out: tuple[str, ...]


def rehearse(recipe: Recipe, *, check: bool = True) -> Rehearsal:
    """Build, load, convert and verify the model of `recipe` as `train` does, and return what a run would start with.

    Published weights and CIFAR are not downloaded, only asked for; `left_out` says so. Other sets are, since their size
    is not known without. Raises whatever the run would raise before its first step.
    """
    left_out: list[str] = []
    if recipe.model.pretrained and not weights_are_here(recipe.model.name):
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": False})})
        left_out.append("the published weights are fetched when the run starts")
    with keep_random_states():
        if recipe.data.name in DATASETS and not is_here(recipe):
            check_place(recipe.data.name, recipe.data.dir)
            left_out.append(f"{recipe.data.name} is not in {_root(recipe)}, and is downloaded when the run starts")
            arguments = {**recipe.model.arguments, "num_classes": count_classes(recipe.data)}
            return _summary(built_on_meta(recipe.model.name, arguments), recipe, None, tuple(left_out))
        prepared = prepare(recipe, check=check)
        return _summary(prepared.training.model, recipe, prepared, tuple(left_out))


def _root(recipe: Recipe) -> Path:
    return Path(recipe.data.dir or "data")


def is_here(recipe: Recipe) -> bool:
    """Return whether the recipe's data are on this machine already."""
    name = recipe.data.name
    if recipe.own_data is not None:
        return True
    if name in DATASETS:
        return DATASETS[name].embedded or os.path.isdir(_root(recipe) / _FOLDERS.get(name, ""))
    return not may_be_fetched(name)


def _summary(model: nn.Module, recipe: Recipe, prepared: Prepared | None, left_out: tuple[str, ...]) -> Rehearsal:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(one.numel() * one.element_size() for one in model.buffers() if one.dtype != torch.bool)
    dense = 4 * parameters + buffers
    multiply_adds, sparse = None, float(dense)
    if prepared is not None:
        multiply_adds = _multiply_adds(model, prepared.training.data.input_shape)
        masked = sum(weight.mask.numel() for weight in masked_weights(model).values())
        there = prepared.training.sparsity
        target = float(recipe.prune.target) if recipe.prune is not None and recipe.prune.amount is None else 0.0
        sparse = dense - 4 * masked + masked * (4 * (1 - max(there, target)) + _bits(max(there, target)) / 8)
    return Rehearsal(parameters, multiply_adds, round(sparse), dense, prepared, left_out)


def _bits(sparsity: float) -> float:
    """Return the entropy of a mask's entry in bits: the least it takes in a file."""
    return 0.0 if sparsity in (0.0, 1.0) else -sum(p * math.log2(p) for p in (sparsity, 1 - sparsity))


def _multiply_adds(model: nn.Module, shape: tuple[int, ...]) -> int:
    plain = plain_copy(model).eval()
    image = torch.zeros(1, *shape, device=next(plain.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(image)
    return int(counter.get_total_flops()) // 2
