"""Latency of torchvision's ResNet-50, dense and without half of its channels, by sparsify and by Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from sparsify.surgery.shrink.shrink import shrink

from ..record import environment, record
from ..timing import alternate, clock, figures, kind_of_time
from .models import count, dependencies, halve

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
        for once in timed.values():
            once()
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
    record("shrink --part resnet50", "\n".join([about, note, "", header, "|---|---|---|---|---|---|---|", *rows]))


def smaller(dense: nn.Module, example: Tensor, share: float, to: int) -> dict[str, nn.Module]:
    """Return two models without this share of the channels, their counts rounded up to multiples of `to`."""
    mine, theirs = copy.deepcopy(dense), copy.deepcopy(dense)
    halve(mine, (example,), ["fc.weight"], share)
    dependencies(theirs, (example,), ["fc.weight"], share, round_to=to).step()
    names = (f"{which}, {share:.0%} of the channels gone, round_to {to}" for which in ("sparsify", "Torch-Pruning"))
    return dict(zip(names, (shrink(mine, example, round_to=to).model, theirs), strict=True))


def forward(model: nn.Module, images: Tensor) -> Callable[[], float]:
    """Return a function that runs the model once without gradients and returns the seconds that it took."""

    def once() -> float:
        started = clock()
        with torch.no_grad():
            model(images)
        return clock() - started

    return once
