"""The loss of a classifier's output, auxiliary heads included."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .evaluate import logits_of

# Weights of the auxiliary losses: 0.3 in GoogLeNet (Szegedy et al. 2014, section 5), 0.4 in Inception v3 as torchvision
# trains it.
_AUXILIARY = {"aux_logits1": 0.3, "aux_logits2": 0.3, "aux_logits": 0.4}


def loss_of(output: Any, classes: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of a model's output, a scalar in float32.

    `output` is a tensor of class scores (batch x classes) or an object with `.logits` and maybe auxiliary scores.
    Raises SparsifyError for any other output.
    """
    loss = _cross_entropy(logits_of(output), classes, label_smoothing)
    for name, weight in _AUXILIARY.items():
        scores = getattr(output, name, None)
        if scores is not None:
            loss = loss + weight * _cross_entropy(scores, classes, label_smoothing)
    return loss


def _cross_entropy(scores: Tensor, classes: Tensor, label_smoothing: float) -> Tensor:
    # Half precision would lose the loss's small differences; autocast does the same.
    return F.cross_entropy(scores.float(), classes, label_smoothing=label_smoothing)
