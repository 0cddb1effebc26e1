"""The small network to train, its prunings, and a comparison of masks from equal weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.processes.shards import copy_into, whole
from sparsify.pruning.criteria.gradients import on_model_and_batch, summed_gradients
from sparsify.surgery.mask_state.masks import masked_weights

_LINEAR = {"schedule": "linear", "scope": "global", "every": "1it"}
_SNIP = {**_LINEAR, "criterion": "snip"}
PRUNINGS: dict[str, dict[str, Any]] = {
    "magnitude": {**_LINEAR, "criterion": "magnitude"},
    "snip": _SNIP,
    "snip, GELU for ReLU": _SNIP,
    "snip, float64": _SNIP,
    "union": {**_LINEAR, "schedule": {"name": "cyclic", "cycles": 3}, "after_cycles": "union", "scope": "filter"},
}
LR = 0.05
SCORED = 4  # batches that snip uses

Batch = tuple[Tensor, Tensor]


def network(name: str = "") -> nn.Module:
    """Return a network without batch norm for the digits, for the pruning `name`."""
    torch.manual_seed(0)
    act = nn.GELU if "GELU" in name else nn.ReLU
    layers = [nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), act(), nn.Conv2d(16, 16, 3), act()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 32), act(), nn.Linear(32, 10))
    return model.to(dtype_of(name))


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype that the pruning `name` is computed in."""
    return torch.float64 if "float64" in name else torch.float32


def trained(model: nn.Module, batches: list[Batch]) -> Iterator[Tensor]:
    """Train one step per batch and yield its loss; the caller makes the pruner's step."""
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True)
    for inputs, classes in batches:
        loss = F.cross_entropy(model(inputs), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach().clone()


def at_equal_weights(
    batches: list[Batch], own: list[Batch], join: Callable[[nn.Module], nn.Module]
) -> dict[str, float]:
    """Return how the snip masks of all processes differ from one process's, from the same weights and batches.

    `batches` are whole, `own` this process's parts of them; `join` returns a model as all processes hold it. One
    process trains, and at each of its "updates" all take over weights and masks before they make theirs. "entries"
    differ then, of all updates together; their scores lie "farthest" from the threshold, relative to it.
    """
    settings, steps = {"sparsity": 0.9, **_SNIP}, len(batches)
    alone, shared = network(), network()
    for model in (alone, shared):
        sparsify.convert(model)
    joined = join(shared)
    one, all_of_them = sparsify.Pruner(alone, settings, steps), sparsify.Pruner(joined, settings, steps)
    one._group = None  # the others do the same, each on its own
    one.start(batches[:SCORED], F.cross_entropy)
    all_of_them.start(own[:SCORED], F.cross_entropy)
    found = {"updates": 0.0, "entries": 0.0, "farthest": 0.0}
    for _ in trained(alone, batches):
        taken_over = shared.state_dict()
        for name, value in alone.state_dict().items():
            copy_into(taken_over[name], value)
        scores = _scores(alone, batches[:SCORED])
        one.step()
        all_of_them.step()
        theirs = {name: whole(mask) for name, mask in sparsify.get_masks(shared).items()}
        _compare(found, scores, sparsify.get_masks(alone), theirs)
    return found


def _scores(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    weights = masked_weights(model)
    gradients = summed_gradients(model, weights, batches, on_model_and_batch(F.cross_entropy))
    return {name: (weights[name].parameter.detach() * gradients[name]).abs() for name in weights}


def _compare(found: dict[str, float], *each: dict[str, Tensor]) -> None:
    """Add to `found` how masks differ, of scores, one process's masks and theirs."""
    flat, kept, theirs = (torch.cat([tensors[name].flatten() for name in each[0]]) for tensors in each)
    differing, threshold = flat[kept != theirs], flat[kept].min()
    found["updates"] += 1
    found["entries"] += len(differing)
    if len(differing):
        found["farthest"] = max(found["farthest"], float(((differing - threshold).abs() / threshold).max()))
