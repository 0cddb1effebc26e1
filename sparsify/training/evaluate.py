"""How well a model does on a test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SparsifyError


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` (top-1, in [0, 1]) and `loss` (mean cross-entropy, nats) over `count` examples."""

    accuracy: float
    loss: float
    count: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation:
    """Return the top-1 accuracy and mean loss of `model` in eval mode over `batches` of (inputs, class indices).

    The model has to be on `device` and is left in the mode it was in. Raises SparsifyError if there is no example.
    """
    # Every module's own mode is put back: a user may keep some of them in eval mode while training.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device="cpu" if torch.device(device).type == "mps" else device)
    count = 0
    with torch.no_grad():
        for inputs, classes in batches:
            inputs, classes = inputs.to(device), classes.to(device)
            with autocast():
                scores = logits_of(model(inputs)).float()
            correct += (scores.argmax(1) == classes).sum()
            loss += F.cross_entropy(scores, classes, reduction="sum").to(loss)
            count += len(classes)
    for module, mode in modes.items():
        module.training = mode
    if count == 0:
        raise SparsifyError("the test set is empty")
    return Evaluation(correct.item() / count, loss.item() / count, count)


def logits_of(output: object) -> Tensor:
    """Return the class scores (batch x classes) in what a model returned: a tensor, or an object with `.logits`."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SparsifyError(f"the model returned {got}, not one score per example and class: not a classifier")
    return logits
