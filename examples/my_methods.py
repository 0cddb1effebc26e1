"""A plugin of `sparsify train --plugin`: a criterion, a schedule and a data set that the package does not have.

    sparsify train recipes/linear_ramp.yaml --plugin examples/my_methods.py --data stripes --model timm:test_resnet \
        --set prune.criterion=large_rows --set prune.schedule=quadratic --set train.epochs=5
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sparsify.pruning.criteria.table import Context
from sparsify.pruning.settings.curves import curve
from sparsify.pruning.settings.prune import Pruning


def large_rows(weights: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
    """Score an entry by its size times the norm of its row: whole rows go before others do."""
    scores = {}
    for name, weight in weights.items():
        norms = weight.flatten(1).norm(dim=1)
        scores[name] = weight.abs() * norms.view(-1, *[1] * (weight.ndim - 1))
    return scores


@curve(keys=("initial_sparsity",))
def quadratic(progress: Fraction, pruning: Pruning) -> Fraction:
    """Rise like 1 - (1 - t)^2, from the schedule's `initial_sparsity`."""
    start = Fraction(pruning.schedule.initial_sparsity or 0)
    return pruning.target + (start - pruning.target) * (1 - progress) ** 2


def stripes(folder: str | None) -> tuple[TensorDataset, TensorDataset]:
    """Return noisy images of horizontal (class 0) and vertical stripes (class 1) for training and test."""
    labels = torch.arange(600) % 2
    lines = (torch.arange(16) % 2).float()
    clean = torch.where(labels.bool()[:, None, None], lines[None, None, :], lines[None, :, None])
    images = clean[:, None] + 0.5 * torch.randn(600, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images[:500], labels[:500]), TensorDataset(images[500:], labels[500:])


CRITERIA = {"large_rows": large_rows}
SCHEDULES = {"quadratic": quadratic}
DATASETS = {"stripes": stripes}
