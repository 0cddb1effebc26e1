"""Small models with masks and given weights, and slow, plain implementations to compare with."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.surgery.convert import convert
from sparsify.surgery.masks import get_masks, masked_weights

Array = np.ndarray[Any, Any]


def linear_model(*weights: Tensor) -> nn.Module:
    """Return a converted model of linear layers, named "0", "1", ..., with the given weights."""
    model = nn.Sequential()
    for weight in weights:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weight.clone())
        layer.out_features, layer.in_features = weight.shape
        model.append(layer)
    convert(model)
    return model


def small_network(seed: int = 0) -> nn.Module:
    """Return a converted network with a convolution, a grouped one, a transposed one, batch norm and a linear layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 5),
    )
    convert(model)
    return model


def set_weights(model: nn.Module, values: Mapping[str, Array]) -> None:
    with torch.no_grad():
        for name, weight in masked_weights(model).items():
            weight.parameter.copy_(torch.from_numpy(values[name]).view_as(weight.parameter))


def masks_of(model: nn.Module) -> dict[str, Array]:
    return {name: mask.numpy().copy() for name, mask in get_masks(model).items()}


def floor_of(sparsity: str | Fraction, size: int) -> int:
    return int(Fraction(sparsity) * size)


def lowest(scores: Array, count: int, alive: Array | None = None) -> Array:
    """Return the mask that removes the `count` lowest scores by a stable sort, those that are not alive first."""
    barred = np.zeros(scores.size, bool) if alive is None else ~alive.ravel()
    order = sorted(range(scores.size), key=lambda i: (not barred[i], scores.ravel()[i], i))
    mask = np.ones(scores.size, bool)
    mask[order[: max(count, int(barred.sum()))]] = False
    return mask.reshape(scores.shape)


def erk_kept(shapes: Sequence[tuple[int, ...]], sizes: Sequence[int], sparsity: str | Fraction) -> list[int]:
    """Return how many entries of each weight are kept: the density scale by bisection, then the largest remainders."""
    keep = sum(sizes) - floor_of(sparsity, sum(sizes))
    raw = [sum(shape) / np.prod(shape, dtype=float) for shape in shapes]
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1.0, middle * d) * n for d, n in zip(raw, sizes, strict=True))
        low, high = (middle, high) if total < keep else (low, middle)
    exact = [min(1.0, high * d) * n for d, n in zip(raw, sizes, strict=True)]
    kept = [int(e + 1e-6) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: kept[i] - exact[i])
    for index in by_remainder[: keep - sum(kept)]:
        kept[index] += 1
    return kept
