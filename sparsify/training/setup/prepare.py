"""From a recipe to a training that is ready to start: data, model, masks, optimiser, pruner."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ...errors import RunError, RunWarning, SparsifyError
from ...formats.model.masks import load_masks
from ...models import FROM_PYTHON, build_model
from ...processes.launch import Launch
from ...processes.ranks import ALONE, Ranks
from ...pruning.pruner import Pruner
from ...start import read_start
from ...surgery.conversion.convert import ConversionReport, convert
from ...surgery.ignore_patterns import PatternError
from ...surgery.mask_state.masks import kept_of, masked_weights
from ...surgery.mask_state.sharding import shard_masks
from ...surgery.verification.verify import VerifyReport, verify
from ...weights import LoadReport
from ..batches.resident import generator_for
from ..batches.types import Data
from ..data.datasets import count_classes, load_data
from ..data.own_data import check_takes, named_data, own_data
from ..loop.average import make_average
from ..loop.forward import make_forward
from ..loop.optimizer import make_accelerator, make_optimizer
from ..loop.train_steps import Training
from ..recipe.lr_schedules import learning_rate_factor
from ..recipe.read import Recipe
from .shard import check_optimizer, shard
from .split import check_same_work, check_split
from .sync_batch_norm import with_sync_batch_norm


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start, and how it was made.

    `spec` and `arguments` build the model by name; `spec` is None for a model from Python without a name. `loaded`
    reports what was read from the recipe's checkpoint, if it names one. Dense training has no `conversion` and no
    `verification`.
    """

    recipe: Recipe
    training: Training
    spec: str | None
    arguments: dict[str, Any]
    loaded: LoadReport | None
    conversion: ConversionReport | None
    verification: VerifyReport | None


class _Built(NamedTuple):
    model: nn.Module
    data: Data
    accelerator: Accelerator
    spec: str | None
    arguments: dict[str, Any]
    loaded: LoadReport | None
    conversion: ConversionReport | None
    verification: VerifyReport | None


def prepare(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    check: bool = True,
    ranks: Ranks = ALONE,
    in_turn: bool = False,
) -> Prepared:
    """Return the training that `recipe` declares, or the same with `model` or `data` in place of the recipe's.

    Several processes (`ranks`) call it at once; `share` joins their models. With `in_turn` one process of each machine
    goes first and downloads what the others then find. Weights are loaded before the conversion, which `check`
    verifies. Raises SparsifyError for settings that do not fit together, RunError if the verification finds a fault.
    """
    built: _Built | None = None
    try:
        for first in (True, False) if in_turn else (None,):
            with ranks.together():  # the pruner, which asks the others, comes after it
                if first is None or first == (ranks.local_rank == 0):
                    built = _build(recipe, model, data, check, ranks)
        assert built is not None
        check_same_work(built.model, built.data, ranks)
        with _told_once(ranks):
            training = _ready(recipe, built.model, built.data, built.accelerator, ranks)
    except PatternError as error:
        raise SparsifyError(f"{recipe.where('prune', *error.keys)}: {error.problem}") from None
    return Prepared(recipe, training, built.spec, built.arguments, built.loaded, built.conversion, built.verification)


@contextmanager
def _told_once(ranks: Ranks) -> Iterator[None]:
    """Let the first process alone tell of an error that all of them find: recipe, model and data are the same."""
    try:
        yield
    except SparsifyError as error:
        raise ranks.one_of(error) from None


def share(training: Training) -> None:
    """Join the models of several processes, whose gradients are averaged from then on. All call it at once."""
    training.forward = make_forward(training.model, training.settings, training.ranks)


def _build(recipe: Recipe, model: nn.Module | None, data: Any, check: bool, ranks: Ranks) -> _Built:
    settings = recipe.train
    accelerator = make_accelerator(settings, launch=Launch(ranks.rank, ranks.size, ranks.local_rank))
    _seed(settings.seed)
    spec, arguments, loaded = None, {}, None
    own = _own_data(recipe, data, accelerator.device)
    if model is None:
        classes = count_classes(recipe.data) if own is None else own.num_classes
        spec, arguments = recipe.model.name, {**recipe.model.arguments, "num_classes": classes}
        model = build_model(spec, pretrained=recipe.model.pretrained, **arguments)
        if recipe.model.checkpoint is not None:
            loaded = read_start(recipe.model.checkpoint).into(model)
        if recipe.model.masks is not None:
            load_masks(recipe.model.masks, model)
    elif not recipe.model.name.startswith(FROM_PYTHON):
        spec, arguments = recipe.model.name, dict(recipe.model.arguments)
    if own is not None:
        check_takes(model, own)
    found = own or load_data(recipe.data, model, seed=settings.seed, device=accelerator.device)
    conversion = verification = None
    if recipe.prune is not None:
        conversion = convert(model, ignore=recipe.prune.ignore, only=recipe.prune.only or ())
    sparse_start = recipe.model.masks is not None or (loaded is not None and loaded.masks > 0)
    if (recipe.prune is not None or sparse_start) and check:
        verification = _verified(model, found.input_shape)
    check_split(recipe.data, model, ranks, settings, accelerator.device)
    model.to(accelerator.device).train()
    if settings.sync_batch_norm and ranks.size > 1:
        model = with_sync_batch_norm(model)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    return _Built(model, found, accelerator, spec, arguments, loaded, conversion, verification)


def _own_data(recipe: Recipe, data: Any, device: torch.device) -> Data | None:
    """Return the data given from Python or made by a plugin, None if the recipe names a set of ours."""
    if data is not None:
        return own_data(data, recipe.data, seed=recipe.train.seed, device=device)
    if recipe.own_data is not None:
        return named_data(recipe.own_data, recipe.data, seed=recipe.train.seed, device=device)
    return None


def _ready(recipe: Recipe, model: nn.Module, data: Data, accelerator: Accelerator, ranks: Ranks) -> Training:
    settings = recipe.train
    steps_per_epoch = -(-len(data.train) // settings.accumulate)
    total_steps = settings.total_steps(steps_per_epoch)
    pruner, sharded = None, settings.shard and ranks.size > 1
    average = make_average(model, settings.ema, sharded=True) if sharded else None  # parts cannot be copied
    if sharded:
        shard(model, average, ranks, accelerator.device)
    optimizer = make_optimizer(model, settings.optimizer)
    if settings.shard:
        check_optimizer(optimizer, settings.optimizer.name)
    if recipe.prune is not None:
        pruner = Pruner(
            model,
            recipe.prune,
            total_steps,
            steps_per_epoch=steps_per_epoch,
            generator=torch.Generator().manual_seed(settings.seed),
            example_input=torch.zeros(1, *data.input_shape, device=accelerator.device),
        )
        if average is not None:
            shard_masks(average.module)  # as the pruner did with the model's
        if recipe.model.checkpoint is not None:
            pruner.check_present(where="prune.sparsity")
        if recipe.prune.amount is None and recipe.prune.target == 1:
            warnings.warn("prune.sparsity: 1 removes every weight that has a mask", RunWarning, stacklevel=2)
    return Training(
        model=model,
        data=data,
        settings=settings,
        accelerator=accelerator,
        optimizer=accelerator.prepare_optimizer(optimizer),
        pruner=pruner,
        forward=make_forward(model, settings, ALONE),
        lr_factor=learning_rate_factor(settings.lr_schedule, total_steps, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        ranks=ranks,
        average=average if sharded else make_average(model, settings.ema),
        sparsity=_sparsity(model),
    )


def _sparsity(model: nn.Module) -> float:
    kept, size = kept_of(masked_weights(model).values())
    return 1 - kept / size if size else 0.0


def seed_own(training: Training) -> None:
    """Seed the generators of a process other than the first by its rank, for dropout and the like."""
    _seed(generator_for(training.settings.seed, training.step, training.ranks.rank).initial_seed())


def _seed(seed: int) -> None:
    """Seed the global generators: Python's, NumPy's and torch's."""
    random.seed(seed)
    # NumPy takes 32 bits at most.
    np.random.seed(np.random.SeedSequence(seed).generate_state(1)[0])
    torch.manual_seed(seed)


def _verified(model: nn.Module, input_shape: tuple[int, ...]) -> VerifyReport:
    generator = torch.Generator().manual_seed(0)
    report = verify(model, (torch.randn(2, *input_shape, generator=generator),))
    if not report.ok:
        raise RunError(
            f"the conversion of this model did not pass its verification: {'; '.join(report.problems)} "
            "(leave such weights out with prune.ignore, or train without the check: --no-verify, check=False)"
        )
    return report
