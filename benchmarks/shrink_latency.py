"""Latency of torchvision's ResNet-50, dense and without half of its channels, by sparsify and by Torch-Pruning."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

import torch
import torchvision
from record import environment, record
from shrink_models import count, dependencies, halve
from torch import Tensor, nn

from sparsify.surgery.shrink.shrink import shrink

BATCHES = {1: 5, 64: 1}  # batch -> passes in each round, of which the median counts
# With half of its channels every layer's width is a multiple of 8 as it is; with 55 % of them rounding has a meaning.
SHARES = {0.5: (1, 8), 0.45: (1, 8)}


def measure(rounds: int) -> None:
    """Write the section of results.md: seconds of one pass in eval mode, in turns between all models."""
    torch.manual_seed(0)
    dense = torchvision.models.resnet50().eval()
    example = torch.randn(1, 3, 224, 224)
    models = {"dense": dense}
    for share, roundings in SHARES.items():
        for to in roundings:
            models |= smaller(dense, example, share, to)
    rows = []
    for batch, passes in BATCHES.items():
        images = torch.randn(batch, 3, 224, 224)
        timed = {name: forward(model, images) for name, model in models.items()}
        seconds = alternate(timed, rounds if batch == 1 else max(3, rounds // 2), passes)
        for name, model in models.items():
            rows.append(f"| {batch} | {name} | {count(model):,} | {figures(seconds[name], seconds['dense'])} |")
            print(rows[-1], flush=True)
    header = (
        "| batch | model | parameters | milliseconds, median | quartiles | dense / it, median of rounds | quartiles |"
    )
    about = environment("torch", "torchvision", "torch-pruning", threads=torch.get_num_threads())
    note = "One pass over images of 224 pixels in eval mode; channels by L2 norm, layer by layer; rounds alternate. "
    note += kind_of_time()
    record("shrink.py --part resnet50", "\n".join([about, note, "", header, "|---|---|---|---|---|---|---|", *rows]))


def smaller(dense: nn.Module, example: Tensor, share: float, to: int) -> dict[str, nn.Module]:
    """Return two models without this share of the channels, their counts rounded up to multiples of `to`."""
    mine, theirs = copy.deepcopy(dense), copy.deepcopy(dense)
    halve(mine, (example,), ["fc.weight"], share)
    dependencies(theirs, (example,), ["fc.weight"], share, round_to=to).step()
    names = (f"{which}, {share:.0%} of the channels gone, round_to {to}" for which in ("sparsify", "Torch-Pruning"))
    return dict(zip(names, (shrink(mine, example, round_to=to).model, theirs), strict=True))


def clock() -> float:
    """Return a time in seconds: of the processor where there is one thread, which others at work leave as it is."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def kind_of_time() -> str:
    """Return a sentence that says what `clock` measures."""
    return "Times are of the processor." if torch.get_num_threads() == 1 else "Times are of the clock on the wall."


def forward(model: nn.Module, images: Tensor) -> Callable[[], float]:
    """Return a function that runs the model once without gradients and returns the seconds that it took."""

    def once() -> float:
        started = clock()
        with torch.no_grad():
            model(images)
        return clock() - started

    return once


def alternate(timed: Mapping[str, Callable[[], float]], rounds: int, times: int) -> dict[str, list[float]]:
    """Return for each the median seconds of every round; a round measures all, every other one backwards."""
    for once in timed.values():
        once()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for index in range(rounds):
        for name in timed if index % 2 == 0 else reversed(timed):
            seconds[name].append(median(timed[name]() for _ in range(times)))
    return seconds


def figures(seconds: list[float], dense: list[float]) -> str:
    """Return cells: median and quartiles in milliseconds, then how many times as fast as the dense model it is."""
    ratios = [whole / one for whole, one in zip(dense, seconds, strict=True)]
    times, gains = quantiles([1e3 * value for value in seconds], n=4), quantiles(ratios, n=4)
    return f"{times[1]:.4g} | {times[0]:.4g} to {times[2]:.4g} | {gains[1]:.2f} | {gains[0]:.2f} to {gains[2]:.2f}"
