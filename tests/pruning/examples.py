"""Small models with masks and given weights, and slow, plain implementations to compare with."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.surgery.channels.analyse import Channels, Operation
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.mask_state.masks import get_masks, masked_weights

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


def small_network(seed: int = 0, *, norms: bool = False) -> nn.Module:
    """Return a converted network with a convolution, a grouped one, a transposed one, batch norm and a linear layer.

    With `norms` batch norms of random scales follow all layers, not only the first.
    """
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
    if norms:
        model = nn.Sequential(*model[:4], nn.BatchNorm2d(4), model[4], nn.BatchNorm2d(6), *model[5:], nn.BatchNorm1d(5))
        for norm in (one for one in model if isinstance(one, nn.modules.batchnorm._BatchNorm)):
            nn.init.uniform_(norm.weight, -1, 1)
    convert(model)
    return model


def batches() -> list[Tensor]:
    """Return two batches of images for `small_network`, always the same."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, 3, 6, 6, generator=generator) for _ in range(2)]


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the loss of a model whose images are of classes 0, 1, 2, ..."""
    return F.cross_entropy(model(batch), torch.arange(len(batch)))


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


def chain() -> tuple[nn.Module, Channels]:
    """Return a converted network of three linear layers, 3 -> 4 -> 5 -> 2, and its groups as they are by hand.

    The first layer makes the groups 0 to 3, the second reads them and makes 4 to 8, the last reads those.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    convert(model)
    first, second, stays = torch.arange(4), torch.arange(4, 9), torch.full((3,), -1)
    labels = {"0.weight": {0: first}, "0.bias": {0: first}, "2.weight": {0: second, 1: first}, "2.bias": {0: second}}
    labels |= {"4.weight": {1: second}}
    produced = {"0.weight": 0, "0.bias": 0, "2.weight": 0, "2.bias": 0}
    operations = (
        Operation("0", 12, (first, stays)),
        Operation("2", 20, (second, first)),
        Operation("4", 10, (stays[:2], second)),
    )
    return model, Channels(labels, produced, 9, torch.zeros(9, dtype=torch.bool), operations, ())


def tied() -> tuple[nn.Module, Channels]:
    """Return a converted network whose first and third layer are added, and its groups as they are by hand.

    The groups 0 to 3 are made by `a` and `c`, whose first row stays; the groups 4 to 6 by `b` alone.
    """
    torch.manual_seed(1)
    model = nn.ModuleDict({"a": nn.Linear(2, 5), "b": nn.Linear(5, 3, bias=False), "c": nn.Linear(3, 5, bias=False)})
    model["d"] = nn.Linear(5, 2)
    convert(model)
    stream, inner = torch.tensor([-1, 0, 1, 2, 3]), torch.tensor([4, 5, 6])
    labels = {"a.weight": {0: stream}, "a.bias": {0: stream}, "b.weight": {0: inner, 1: stream}}
    labels |= {"c.weight": {0: stream, 1: inner}, "d.weight": {1: stream}}
    produced = {"a.weight": 0, "a.bias": 0, "b.weight": 0, "c.weight": 0}
    return model, Channels(labels, produced, 7, torch.zeros(7, dtype=torch.bool), (), ("a barrier",))
