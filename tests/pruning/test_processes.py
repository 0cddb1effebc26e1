"""A pruner in a user's own loop of two processes under DistributedDataParallel: one mask, that of one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify import Pruner, convert, get_masks
from sparsify.errors import ElsewhereError, SparsifyError
from sparsify.pruning.criteria.table import needs_data
from sparsify.pruning.report import SparsityWarning
from sparsify.pruning.same_masks import mask_hash, packed_on_device

from ..ranks import on_ranks

CRITERIA = ["magnitude", "random", "snip", "grasp", "synflow", "taylor", "fisher", "movement", "wanda", "lamp", "fpgm"]
INPUTS = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(5))  # 4 batches of 8
TARGETS = torch.randint(0, 3, (4, 8), generator=torch.Generator().manual_seed(6))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    convert(model)
    return model


def batches(rank: int, size: int) -> list[tuple[Tensor, Tensor]]:
    part = slice(rank * 8 // size, (rank + 1) * 8 // size)
    return [(x[part], y[part]) for x, y in zip(INPUTS, TARGETS, strict=True)]


def trained(model: nn.Module, rank: int, size: int, criterion: Any, **more: Any) -> list[dict[str, Tensor]]:
    """Train for eight steps, pruning at every second one; return the masks after each."""
    inner = model.module if hasattr(model, "module") else model
    settings = {"criterion": criterion, "sparsity": 0.6, "scope": "global", "end": "8it", "every": "2it"}
    settings |= {"schedule": "linear", **({"granularity": "unit"} if criterion == "fpgm" else {}), **more}
    generator = torch.Generator().manual_seed(rank)
    pruner = Pruner(model, settings, 8, generator=generator, example_input=INPUTS[0])
    pruner.start(batches(rank, size), F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    found = []
    for step in range(8):
        inputs, targets = batches(rank, size)[step % 4]
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityWarning)
            pruner.step()
        found.append({name: mask.clone() for name, mask in get_masks(inner).items()})
    return found


def without_broadcast(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch have another word for it
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def under_ddp(rank: int, criteria: list[str]) -> dict[str, Any]:
    return {one: trained(without_broadcast(network(rank)), rank, 2, one) for one in criteria}


def test_masks_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    one, other = on_ranks(2, under_ddp, tmp_path, CRITERIA)
    for criterion in CRITERIA:
        alone = trained(network(), 0, 1, criterion)
        assert not all(mask.all() for mask in alone[-1].values())
        for mine, theirs, single in zip(one[criterion], other[criterion], alone, strict=True):
            for name, mask in single.items():
                assert torch.equal(mine[name], theirs[name]), (criterion, name)
                assert torch.equal(mine[name], mask), (criterion, name)


@needs_data
def own_gradient(weights: Any, context: Any) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    parameters = dict(context.model.named_parameters())
    for batch in context.batches:
        context.loss_fn(context.model, batch).backward()
    for name in sums:
        sums[name] = parameters[name].grad.clone()
    return sums


def drawn(weights: Any, context: Any) -> dict[str, Tensor]:
    return {name: torch.rand(weight.shape, generator=context.generator) for name, weight in weights.items()}


def own_criteria(rank: int) -> list[list[dict[str, Tensor]]]:
    models = [without_broadcast(network()) for _ in range(2)]
    return [trained(model, rank, 2, one) for model, one in zip(models, (own_gradient, drawn), strict=True)]


def test_criteria_of_ones_own_give_one_mask(tmp_path: Path) -> None:
    one, other = on_ranks(2, own_criteria, tmp_path)
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(mine[-1][name], theirs[-1][name]) for name in mine[-1])
        assert not mine[-1]["0.weight"].all()


def by_rank(weights: Any, context: Any) -> dict[str, Tensor]:
    flip = torch.distributed.get_rank() == 1
    return {name: -weight if flip and name == "2.weight" else weight for name, weight in weights.items()}


def differing(rank: int) -> list[str]:
    said = []
    for model, criterion in ((network(rank), "magnitude"), (without_broadcast(network()), by_rank)):
        with pytest.raises(SparsifyError) as caught:
            trained(model, rank, 2, criterion, scope="layer")
        said.append(str(caught.value))
        assert all(mask.all() for mask in get_masks(model).values())
    pruner = Pruner(network(), {"sparsity": 0.5}, 4)
    with pytest.raises(SparsifyError) as caught:
        pruner.position = rank
        pruner.start()
    return [*said, str(caught.value)]


def test_masks_that_differ_stop_all_with_the_weight(tmp_path: Path) -> None:
    for said in on_ranks(2, differing, tmp_path):
        assert "the mask of 0.weight and 2 more is not the same on all processes after update 2 at step 2" in said[0]
        assert "the mask of 2.weight is not the same" in said[1]
        assert "differ in their steps" in said[2]


def failing(rank: int) -> str:
    model = network()
    pruner = Pruner(model, {"criterion": "snip", "sparsity": 0.5, "scope": "global"}, 4)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if rank == 1:
            raise SparsifyError("no loss here")
        return F.cross_entropy(outputs, targets)

    try:
        pruner.start(batches(rank, 2), loss)
    except SparsifyError as error:
        return f"{type(error).__name__} {error.exit_code} {error}"
    return "nothing"


def test_an_error_of_one_process_is_raised_on_all(tmp_path: Path) -> None:
    said = on_ranks(2, failing, tmp_path)
    assert said == [f"{ElsewhereError.__name__} 2 process 1: no loss here", "SparsifyError 2 no loss here"]


def uneven(rank: int) -> dict[str, Tensor]:
    """Give the second process one batch less."""
    model = network()
    pruner = Pruner(model, {"criterion": "taylor", "sparsity": 0.5, "scope": "global"}, 4)
    pruner.start(batches(rank, 2)[rank:], F.cross_entropy)
    return get_masks(model)


def test_processes_may_have_more_batches_than_others(tmp_path: Path) -> None:
    one, other = on_ranks(2, uneven, tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_hashes_tell_masks_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1003, generator=generator) < 0.5
    seen = {mask_hash(mask)}
    for place in range(1003):
        changed = mask.clone()
        changed[place] = ~changed[place]
        seen.add(mask_hash(changed))
    assert len(seen) == 1004 and mask_hash(mask.clone()) in seen
    assert packed_on_device(mask).tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
