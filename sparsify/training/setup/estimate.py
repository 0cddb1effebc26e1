"""How long a run will take, by a few steps of it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from ...preserve import keep_random_states
from ..loop.evaluate import evaluate
from ..loop.train_steps import Training, epoch_steps, take_step

_MOST_STEPS = 5
_SECONDS = 5.0  # after which no further step is timed


def estimate_seconds(training: Training) -> tuple[float, int]:
    """Return about how many seconds the whole run takes with its evaluations, and how many steps that is judged by.

    Takes these steps and tests one batch: the weights of `training`, which is to be thrown away, change; random states
    do not. Updates of masks are not counted.
    """
    with keep_random_states(training.accelerator.device):
        step, steps = _step_seconds(replace(training, pruner=None))
        epochs = -(-training.total_steps // training.steps_per_epoch)
        tests = -(-epochs // training.settings.evaluate_every)
        return step * training.total_steps + tests * _test_seconds(training), steps


def _step_seconds(training: Training) -> tuple[float, int]:
    """Return the median time of a step, the first left out if there are others: much happens in it once."""
    marks = [_now(training)]
    for batches in epoch_steps(training):
        take_step(training, batches)
        marks.append(_now(training))
        if len(marks) > _MOST_STEPS or marks[-1] - marks[0] > _SECONDS:
            break
    times = [after - before for before, after in pairwise(marks)]
    return median(times[1:] or times), len(times[1:] or times)


def _test_seconds(training: Training) -> float:
    """Return the time of an evaluation, by one batch."""
    test = training.data.test
    batch = None if test is None else next(iter(test), None)
    if test is None or batch is None:
        return 0.0
    begun = _now(training)
    evaluate(training.model, [batch], device=training.accelerator.device, autocast=training.accelerator.autocast)
    return (_now(training) - begun) * len(test)


def _now(training: Training) -> float:
    if training.accelerator.device.type == "cuda":
        torch.cuda.synchronize(training.accelerator.device)
    return time.perf_counter()
