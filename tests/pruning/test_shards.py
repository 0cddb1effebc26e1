"""Pruning of a model that torch's fully_shard has cut over two processes: the masks of one process, in parts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify import Pruner, convert, get_masks, set_masks
from sparsify.errors import SparsifyError
from sparsify.processes.shards import is_sharded, whole
from sparsify.pruning.report import SparsityWarning
from sparsify.pruning.selection.k_lowest import ScoredTensor, remove_lowest

from ..ranks import on_ranks

INPUTS = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(5))
TARGETS = torch.randint(0, 3, (4, 8), generator=torch.Generator().manual_seed(6))
SETTINGS: dict[str, dict[str, Any]] = {
    "magnitude": {"scope": "global"},
    "layer": {"scope": "layer", "masked_weights": "freeze"},
    "filter": {"scope": "filter", "masked_weights": "zero"},
    "erk": {"scope": "erk", "regrow": False},
    "random": {"criterion": "random", "scope": "global"},
    "snip": {"criterion": "snip", "scope": "global"},
    "movement": {"criterion": "movement", "scope": "layer"},
    "union": {"scope": "filter", "schedule": {"name": "cyclic", "cycles": 2}, "after_cycles": "union"},
    "global union": {"scope": "global", "schedule": {"name": "cyclic", "cycles": 2}, "after_cycles": "union"},
    "rows": {"granularity": "unit", "scope": "global"},
    "n:m": {"granularity": "1:2", "sparsity": 0.5, "scope": "layer"},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    # 7 and 3 rows make uneven parts; one process has none of the only row.
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1), nn.Tanh(), nn.Linear(1, 4), nn.Linear(4, 3))
    convert(model)
    return model


def sharded(model: nn.Module, *copies: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape, names = (copies, ("copies", "shards")) if copies else ((torch.distributed.get_world_size(),), ("shards",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batches(rank: int, size: int) -> list[tuple[Tensor, Tensor]]:
    part = slice(rank * 8 // size, (rank + 1) * 8 // size)
    return [(x[part], y[part]) for x, y in zip(INPUTS, TARGETS, strict=True)]


def settings(name: str) -> dict[str, Any]:
    return {"sparsity": 0.6, "end": "8it", "every": "2it", "schedule": "linear", **SETTINGS[name]}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, batch: tuple[Tensor, Tensor]) -> None:
    inputs, targets = batch
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", SparsityWarning)
        model(inputs)  # an evaluation leaves whole parameters behind
        pruner.step()


def trained(model: nn.Module, rank: int, size: int, name: str) -> tuple[list[dict[str, Tensor]], Any, Any]:
    pruner = Pruner(model, settings(name), 8)
    pruner.start(batches(rank, size), F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    found = []
    for number in range(8):
        step(model, optimizer, pruner, batches(rank, size)[number % 4])
        found.append({name: whole(mask).clone() for name, mask in get_masks(model).items()})
    return found, {name: whole(value).detach().clone() for name, value in model.state_dict().items()}, pruner


def under_fsdp(rank: int, folder: str) -> dict[str, Any]:
    results = {}
    for name in SETTINGS:
        model = sharded(network())
        found, state, pruner = trained(model, rank, 2, name)
        assert all(is_sharded(mask) for mask in get_masks(model).values())
        report = pruner.report()
        path = Path(folder, f"{name.replace(':', '-')}.safetensors")
        size = sparsify.save(model, path)
        assert size > 0 and is_sharded(model[0].weight)
        results[name] = found, state, str(report)
    return results


def test_masks_of_a_sharded_model_are_those_of_a_whole_one(tmp_path: Path) -> None:
    one, other = on_ranks(2, under_fsdp, tmp_path / "ranks", str(tmp_path), seconds=120)
    for name in SETTINGS:
        model = network()
        alone, state, pruner = trained(model, 0, 1, name)
        assert one[name][2] == other[name][2] == str(pruner.report())
        for mine, theirs, single in zip(one[name][0], other[name][0], alone, strict=True):
            for weight, mask in single.items():
                assert torch.equal(mine[weight], theirs[weight]), (name, weight)
                assert torch.equal(mine[weight], mask), (name, weight)
        assert not all(mask.all() for mask in alone[-1].values())
        for key, value in state.items():
            torch.testing.assert_close(one[name][1][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
        loaded = sparsify.load(tmp_path / f"{name.replace(':', '-')}.safetensors", network())
        for key, mask in get_masks(loaded).items():
            assert torch.equal(mask, alone[-1][key])
            effective = torch.where(mask, one[name][1][key], 0)
            assert torch.equal(torch.where(mask, loaded.state_dict()[key], 0), effective)


def checkpointed(rank: int, folder: str) -> dict[str, Tensor]:
    """Train half of a union, keep it with torch's own sharded checkpoint, and go on in a new model."""
    import torch.distributed.checkpoint.state_dict_loader as loader
    import torch.distributed.checkpoint.state_dict_saver as saver

    first, number = sharded(network()), 6
    pruner = Pruner(first, settings("union"), 8)
    pruner.start()
    optimizer = torch.optim.SGD(first.parameters(), 0.5)
    for index in range(number):
        step(first, optimizer, pruner, batches(rank, 2)[index % 4])
    saver.save({"model": first.state_dict(), "pruner": pruner.state_dict()}, checkpoint_id=folder)
    second = sharded(network())
    again = Pruner(second, settings("union"), 8)
    set_masks(second, {name: torch.zeros(mask.shape, dtype=torch.bool) for name, mask in get_masks(second).items()})
    state = {"model": second.state_dict(), "pruner": pruner.state_dict()}
    for value in state["pruner"].values():
        if isinstance(value, Tensor) and value.dtype == torch.bool:
            value.zero_()
    loader.load(state, checkpoint_id=folder)
    second.load_state_dict(state["model"])
    again.load_state_dict(state["pruner"])
    for model, own in ((first, pruner), (second, again)):
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for index in range(number, 8):
            step(model, optimizer, own, batches(rank, 2)[index % 4])
    for name, value in first.state_dict().items():
        assert torch.equal(whole(value), whole(second.state_dict()[name])), name
    return {name: whole(mask) for name, mask in get_masks(second).items()}


def test_a_sharded_checkpoint_goes_on_in_two_processes_and_in_one(tmp_path: Path) -> None:
    import torch.distributed.checkpoint.state_dict_loader as loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks, _ = on_ranks(2, checkpointed, tmp_path / "ranks", str(tmp_path / "kept"))
        model = network()
        pruner = Pruner(model, settings("union"), 8)
        half = Pruner(network(), settings("union"), 8)
        half.start()
        optimizer = torch.optim.SGD(half.model.parameters(), 0.5)
        for index in range(6):
            step(half.model, optimizer, half, batches(0, 1)[index % 4])
        state = {"model": model.state_dict(), "pruner": half.state_dict()}
        loader.load(state, checkpoint_id=tmp_path / "kept", no_dist=True)
    model.load_state_dict(state["model"])
    pruner.load_state_dict(state["pruner"])
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for index in range(6, 8):
        step(model, optimizer, pruner, batches(0, 1)[index % 4])
    assert all(torch.equal(mask, masks[name]) for name, mask in get_masks(model).items())


def selected(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for count in (0, 1, 50, 117, 400, 700, 840):
        tensors = []
        for rows in (1, 3, 10, 70):
            scores = torch.randint(-3, 4, (rows, 10), generator=generator).float()
            allowed = torch.rand(rows, 10, generator=generator) < 0.9
            mask = torch.empty(rows, 10, dtype=torch.bool)
            part = slice(0, rows) if rank < 0 else slice(rank * -(-rows // 2), (rank + 1) * -(-rows // 2))
            group = None if rank < 0 else torch.distributed.group.WORLD
            whole_one = ScoredTensor(str(rows), scores, mask, False, allowed)
            chosen = [one[part].contiguous() for one in (scores, mask, allowed)]
            tensors.append(ScoredTensor(whole_one.name, chosen[0], chosen[1], False, chosen[2], group))
        remove_lowest(tensors, count)
        found += [one.mask for one in tensors]
    return found


def test_ties_are_broken_as_in_one_process(tmp_path: Path) -> None:
    one, other = on_ranks(2, selected, tmp_path)
    for mine, theirs, alone in zip(one, other, selected(-1), strict=True):
        assert torch.equal(torch.cat([mine, theirs]), alone)


def refused(rank: int, path: str) -> list[str]:
    model = sharded(network())
    said = []

    def noted(action: Any) -> None:
        with pytest.raises(SparsifyError) as caught:
            action()
        said.append(str(caught.value))

    noted(lambda: convert(model))
    noted(lambda: sparsify.fold(model))
    noted(lambda: sparsify.load(path, model))
    noted(lambda: sparsify.save(model, f"{path}.onnx", format="onnx", example_input=INPUTS[0]))
    for more in ({"criterion": "taylor"}, {"criterion": "fpgm", "granularity": "unit"}):
        noted(lambda more=more: Pruner(model, {"sparsity": 0.5, "scope": "global", **more}, 8))
    noted(lambda: Pruner(model, {"sparsity": 0.5, "granularity": "unit"}, 8, example_input=INPUTS[0]))
    with torch.no_grad():
        pruner = Pruner(model, {"sparsity": 0.5, "scope": "global"}, 8)
        if rank == 1:
            model[0].weight.to_local()[0, 0] = float("nan")
        noted(pruner.start)
    return said


def test_what_does_not_work_on_shards_is_refused_in_one_line(tmp_path: Path) -> None:
    sparsify.save(network(), tmp_path / "file.safetensors")
    first, second = on_ranks(2, refused, tmp_path / "ranks", str(tmp_path / "file.safetensors"))
    expected = ["convert: the model is sharded by fully_shard (0.weight is a DTensor); convert it before it is cut"]
    expected += ["fold: the model is sharded", "load: the model is sharded", "save: format 'onnx' takes no model"]
    expected += ["criterion 'taylor'", "criterion 'fpgm'", "is sharded", "0.weight: a score is NaN"]
    for mine, theirs, part in zip(first, second, expected, strict=True):
        assert part in mine and part in theirs and "\n" not in mine, (part, mine, theirs)


def with_copies(rank: int, *mesh: int) -> dict[str, Any]:
    size, found = mesh[0] * mesh[1], {}
    for name in ("snip", "random", "global union"):
        model = sharded(network(), *mesh)
        masks, state, _ = trained(model, rank, size, name)
        found[name] = masks, state
    if mesh[0] > 1:  # one copy alone gets other weights, and so other masks
        model = sharded(network(), *mesh)
        pruner = Pruner(model, {"sparsity": 0.5, "scope": "layer", "schedule": "constant"}, 8)
        if rank < mesh[1]:
            with torch.no_grad():
                model[0].weight.to_local().copy_(model[0].weight.to_local().flip(1))
        with pytest.raises(SparsifyError, match=r"0\.weight is not the same on all processes"):
            pruner.start()
    return found


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_masks_of_a_model_that_is_sharded_with_copies(tmp_path: Path, mesh: tuple[int, int]) -> None:
    results = on_ranks(mesh[0] * mesh[1], with_copies, tmp_path / "ranks", *mesh, seconds=120)
    for name in results[0]:
        alone, state, _ = trained(network(), 0, 1, name)
        for found in results:
            for mine, single in zip(found[name][0], alone, strict=True):
                assert all(torch.equal(mine[weight], mask) for weight, mask in single.items()), name
            for key, value in state.items():
                torch.testing.assert_close(found[name][1][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
