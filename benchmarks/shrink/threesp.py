"""3SP (van Amersfoort et al. 2020): networks pruned by sensitivity per multiply-add before training, then shrunk.

Their claim is that the smaller networks train twice as fast and infer three times as fast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count as naturals
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from sparsify import Pruner
from sparsify.surgery.shrink.shrink import ShrinkReport, shrink
from sparsify.training.batches.types import Data
from sparsify.training.data.datasets import load_data
from sparsify.training.loop.evaluate import evaluate
from sparsify.training.recipe.settings import DataSettings

from ..record import environment, record
from ..timing import alternate, clock, figures, kind_of_time
from .latency import forward

MODELS = ("cifar:resnet32", "cifar:vgg19_bn")
REMOVED = 0.75  # of the multiply-adds
TRAINING, INFERENCE = 128, (1, 64)  # batches that are timed
SCORED = 8  # batches that the sensitivity is summed over
LEARNING_RATE = 0.05
_TIMES = ("dense, ms", "quartiles", "shrunk, ms", "quartiles", "dense / shrunk", "quartiles")
HEADER = ("model", "parameters", "multiply-adds", "what", *_TIMES)
SETTINGS = {
    "criterion": {"name": "snip", "per": "flops"},
    "granularity": {"name": "unit", "aggregate": "sum"},
    "scope": "global",
    "sparsity": REMOVED,
    "of": "flops",
    "ignore": ["last"],
}


@dataclass(frozen=True)
class Pair:
    """A dense model and what is left of it before training, with shrink's report."""

    dense: nn.Module
    small: nn.Module
    report: ShrinkReport


def measure(folder: Path, only: str, rounds: int, steps: int, seeds: int) -> None:
    """Write the section of results.md: times of both, and the accuracy after short runs by the same recipe."""
    timings, runs = [], []
    for spec in MODELS:
        if fnmatchcase(spec, only):
            timings += timed(spec, folder, rounds)
            print("\n".join(timings[-3:]), flush=True)
    for spec in MODELS:
        if fnmatchcase(spec, only) and steps:
            runs.append(short_runs(spec, folder, steps, seeds))
            print(runs[-1], flush=True)
    lines = [
        environment("torch", threads=torch.get_num_threads()),
        f"CIFAR-100. Channels that are {REMOVED:.0%} of the multiply-adds go before training, by |w dL/dw| of a group,",
        f"per multiply-add that its removal saves; gradients of {SCORED} batches of {TRAINING}. Rounds alternate.",
        kind_of_time(),
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
        *timings,
    ]
    if runs:
        lines += [
            "",
            f"Test accuracy after {steps} steps of SGD (Nesterov momentum 0.9, weight decay 5e-4, learning rate "
            f"{LEARNING_RATE} down to 0 by a cosine, batch {TRAINING}), one figure for each seed:",
            "",
            "| model | dense | shrunk | difference of the means, points | minutes, dense | minutes, shrunk |",
            "|---|---|---|---|---|---|",
            *runs,
        ]
    record("shrink --part threesp", "\n".join(lines))


def pair(spec: str, folder: Path, seed: int) -> tuple[Pair, Data]:
    """Return a network as it is initialised, the same without 75 % of the multiply-adds, and the data."""
    torch.manual_seed(seed)
    dense = sparsify.build_model(spec, num_classes=100)
    data = load_data(DataSettings(name="cifar100", dir=str(folder), batch_size=TRAINING), dense, seed=seed)
    masked = copy.deepcopy(dense)
    sparsify.convert(masked)
    example = torch.randn(2, *data.input_shape)
    pruner = Pruner(masked, SETTINGS, total_steps=0, example_input=example)
    pruner.start(list(islice(data.train.epoch(0), SCORED)), F.cross_entropy)
    report = shrink(masked, example)
    return Pair(dense, report.model, report), data


def timed(spec: str, folder: Path, rounds: int) -> list[str]:
    """Return rows of the table: one training step, and one pass for inference, dense and shrunk."""
    both, data = pair(spec, folder, 0)
    images, classes = next(iter(data.train.epoch(0)))
    cases: dict[str, dict[str, Callable[[], float]]] = {
        f"training step, batch {TRAINING}": {
            name: training_step(copy.deepcopy(model), images, classes)
            for name, model in (("dense", both.dense), ("shrunk", both.small))
        }
    }
    for batch in INFERENCE:
        cases[f"inference, batch {batch}"] = {
            name: forward(copy.deepcopy(model).eval(), images[:batch])
            for name, model in (("dense", both.dense), ("shrunk", both.small))
        }
    rows = []
    whole, left = (f"{before:,} to {after:,}" for before, after in (both.report.parameters, both.report.multiply_adds))
    for what, each in cases.items():
        for once in each.values():
            once()
        seconds = alternate(each, rounds, 20 if what.endswith(" 1") else 1)
        dense = " | ".join(figures(seconds["dense"], seconds["dense"]).split(" | ")[:2])
        small = figures(seconds["shrunk"], seconds["dense"])
        rows.append(f"| {spec} | {whole} | {left} | {what} | {dense} | {small} |")
    return rows


def training_step(model: nn.Module, images: Tensor, classes: Tensor) -> Callable[[], float]:
    """Return a function that takes one step of SGD on the same batch and returns the seconds."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> float:
        started = clock()
        learn(model, optimizer, images, classes)
        return clock() - started

    return step


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, classes: Tensor) -> None:
    """Take one optimiser step on one batch."""
    F.cross_entropy(model(images), classes).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def short_runs(spec: str, folder: Path, steps: int, seeds: int) -> str:
    """Return a row: test accuracies in per cent of both after short runs, and the minutes that one took."""
    accuracies: dict[str, list[float]] = {"dense": [], "shrunk": []}
    minutes: dict[str, list[float]] = {"dense": [], "shrunk": []}
    for seed in range(1, seeds + 1):
        both, data = pair(spec, folder, seed)
        assert data.test is not None, "CIFAR-100 has test images"
        for name, model in (("dense", both.dense), ("shrunk", both.small)):
            started = clock()
            train(model, data, steps)
            minutes[name].append((clock() - started) / 60)
            accuracies[name].append(100 * evaluate(model, data.test).accuracy)
            print(
                f"{spec} {name}, seed {seed}: {accuracies[name][-1]:.2f} % in {minutes[name][-1]:.1f} min", flush=True
            )
    listed = [", ".join(f"{value:.2f}" for value in accuracies[name]) for name in accuracies]
    apart = mean(accuracies["shrunk"]) - mean(accuracies["dense"])
    times = [f"{mean(minutes[name]):.1f}" for name in minutes]
    return f"| {spec} | {' | '.join(listed)} | {apart:+.2f} | {' | '.join(times)} |"


def train(model: nn.Module, data: Data, steps: int) -> None:
    """Train a model in place for some steps on augmented images."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for images, classes in islice(endless(data), steps):
        learn(model, optimizer, images, classes)
        schedule.step()


def endless(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch after the other."""
    for index in naturals():
        yield from data.train.epoch(index)
