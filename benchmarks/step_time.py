"""Seconds of one training step: dense, masked by sparsify, and masked by torch.nn.utils.prune, alternated.

    python -m benchmarks.step_time [--rounds N] [--only MODEL]

Each model is built three times with the same weights, masked at 90 % by magnitude, layer by layer, and takes SGD steps
(Nesterov momentum 0.9, weight decay 5e-4) on random images of 32x32. Rounds alternate between the three in one process.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import sparsify
from sparsify.surgery.mask_state.masks import masked_weights

from .record import environment, record
from .timing import alternate, quartiles

CASES = [("cifar:resnet32", 128, 1), ("cifar:vgg19_bn", 128, 1), ("timm:vgg19_bn", 64, 1)]


def masked(model: nn.Module) -> nn.Module:
    sparsify.convert(model)
    settings = {"scope": "layer", "sparsity": 0.9, "schedule": "one_shot"}
    sparsify.Pruner(model, settings, total_steps=1).start()
    return model


def pruned_by_torch(model: nn.Module) -> nn.Module:
    for weight in list(masked_weights(masked(copy.deepcopy(model)))):
        module = model.get_submodule(weight.rpartition(".")[0])
        prune.l1_unstructured(module, "weight", amount=0.9)  # type: ignore[no-untyped-call]
    return model


def stepper(model: nn.Module, batch: int) -> Callable[[], float]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, classes = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> float:
        started = time.perf_counter()
        loss = F.cross_entropy(model(images), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def measure(spec: str, batch: int, rounds: int, steps: int) -> list[str]:
    torch.manual_seed(0)
    model = sparsify.build_model(spec, num_classes=10)
    steppers = {
        "dense": stepper(copy.deepcopy(model), batch),
        "sparsify": stepper(masked(copy.deepcopy(model)), batch),
        "torch.nn.utils.prune": stepper(pruned_by_torch(model), batch),
    }
    for step in steppers.values():
        step(), step()
    seconds = alternate(steppers, rounds, steps)
    rows = []
    for name, values in seconds.items():
        ratios = [value / dense for value, dense in zip(values, seconds["dense"], strict=True)]
        low, high = quartiles(ratios)
        of_medians = median(values) / median(seconds["dense"])
        figures = [median(values), of_medians, median(ratios)]
        cells = [spec, str(batch), name, *(f"{figure:.3f}" for figure in figures)]
        rows.append(f"| {' | '.join(cells)} | {low:.3f} to {high:.3f} |")
    del steppers
    gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="a model's name")
    options = parser.parse_args()
    rows = []
    for spec, batch, steps in CASES:
        if options.only in (None, spec):
            rows += measure(spec, batch, options.rounds, steps)
            print("\n".join(rows[-3:]), flush=True)
    header = "| model | batch | masked by | seconds a step | ratio of medians | median of ratios | quartiles |"
    note = f"Medians of {options.rounds} alternated rounds, 32x32 images, 90 % sparsity, SGD with momentum."
    about = environment("torch", "timm", threads=torch.get_num_threads())
    record("step_time", "\n".join([about, note, "", header, "|---|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
