"""The work of each process of a launch: training runs of a small network, and the costs of masks with a large one."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import sparsify
from sparsify.processes.shards import local, whole
from sparsify.pruning.same_masks import check_same
from sparsify.surgery.mask_state.masks import masked_weights
from sparsify.training.batches.shares import WHOLE, Share
from sparsify.training.data.datasets import load_data
from sparsify.training.recipe.settings import DataSettings

from .networks import LR, PRUNINGS, SCORED, Batch, at_equal_weights, dtype_of, network, trained

_BATCH, _EPOCHS = 128, 3
_STEPS = _EPOCHS * 12


def recipe(name: str) -> dict[str, Any]:
    """Return the recipe of the pruning with this name."""
    optimizer = {"name": "sgd", "lr": LR, "momentum": 0.9}
    train = {"epochs": _EPOCHS, "seed": 1, "log_every": 3, "device": "cpu", "optimizer": optimizer}
    data = {"name": "digits", "batch_size": _BATCH}
    return {"name": name, "data": data, "train": train, "prune": {"sparsity": 0.9, **PRUNINGS[name]}}


def _under_ddp(folder: Path) -> dict[str, Any]:
    found = {}
    for name in PRUNINGS:
        if dtype_of(name) == torch.float32:  # a recipe's data are
            out = folder / name
            result = sparsify.train(recipe(name), model=network(name), out=out, check=False)
            masks = {key: mask.clone() for key, mask in sparsify.get_masks(result.model).items()}
            lines = (out / "metrics.jsonl").read_text().splitlines()
            found[name] = {"masks": masks, "losses": [json.loads(line)["loss"] for line in lines]}
    return found


def _sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _batches(share: Share = WHOLE) -> list[Batch]:
    settings = DataSettings(name="digits", batch_size=_BATCH, drop_last=True)
    loader = load_data(settings, network(), seed=1).train
    return [(batch[0], batch[1]) for epoch in range(_EPOCHS + 1) for batch in loader.epoch(epoch, 0, share)][:_STEPS]


def _under_fsdp(own: list[Batch]) -> dict[str, Any]:
    found = {}
    for name, pruning in PRUNINGS.items():
        batches = [(inputs.to(dtype_of(name)), classes) for inputs, classes in own]
        model = network(name)
        sparsify.convert(model)
        _sharded(model)
        pruner = sparsify.Pruner(model, {"sparsity": 0.9, **pruning}, _STEPS)
        pruner.start(batches[:SCORED], F.cross_entropy)
        losses = []
        for loss in trained(model, batches):
            pruner.step()
            distributed.all_reduce(loss)
            losses.append(float(loss) / distributed.get_world_size())
        masks = {key: whole(mask).clone() for key, mask in sparsify.get_masks(model).items()}
        found[name] = {"masks": masks, "losses": losses}
    return found


@contextmanager
def _payloads() -> Iterator[Counter[str]]:
    """Count the bytes that this process passes to all-reduces and gathers of objects."""
    counted: Counter[str] = Counter()
    reduce, gather = distributed.all_reduce, distributed.all_gather_object

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counted["reduced"] += tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **kwargs)

    def all_gather_object(objects: list[Any], value: Any, *args: Any, **kwargs: Any) -> None:
        counted["objects"] += 1
        gather(objects, value, *args, **kwargs)

    package: Any = distributed
    package.all_reduce, package.all_gather_object = all_reduce, all_gather_object
    try:
        yield counted
    finally:
        package.all_reduce, package.all_gather_object = reduce, gather


def _seconds(action: Callable[[], object]) -> float:
    """Return the processor's seconds of the fastest of three calls."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        action()
        taken.append(time.process_time() - started)
    return min(taken)


def _costs(folder: Path) -> dict[str, Any]:
    """Return the costs of hashes and a sharded selection of VGG-19, and of a training step on this process's images."""
    size = distributed.get_world_size()
    model = sparsify.build_model("cifar:vgg19_bn", num_classes=100)
    sparsify.convert(model)
    inputs, classes = torch.randn(_BATCH // size, 3, 32, 32), torch.randint(0, 100, (_BATCH // size,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(inputs), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Any] = {"step": _seconds(step)}
    weights = masked_weights(model)
    found["hash"] = _seconds(lambda: check_same(weights, 0, 0, distributed.group.WORLD))
    with _payloads() as counted:
        check_same(weights, 0, 0, distributed.group.WORLD)
    found |= {"hash bytes": counted["reduced"], "weights": len(weights)}
    settings = {"sparsity": 0.9, "scope": "global", "schedule": "constant", "every": "1it"}
    pruner = sparsify.Pruner(model, settings, 1000)
    pruner._group = None  # without the hash, which is measured by itself
    pruner.start()
    found["selection whole"] = _seconds(pruner.step)
    del pruner
    _sharded(model)
    shards = sparsify.Pruner(model, settings, 1000)
    shards.start()
    with _payloads() as counted:
        shards.step()
    found |= {"selection bytes": counted["reduced"], "selection objects": counted["objects"]}
    found["selection sharded"] = _seconds(shards.step)
    masks = sparsify.get_masks(model).values()
    found["mask bytes"] = sum(local(mask).numel() for mask in masks)
    found["entries"] = sum(mask.numel() for mask in masks)
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    state_dict_saver.save({"model": model.state_dict()}, checkpoint_id=folder / "sharded")
    distributed.barrier()
    files = sorted(path.stat().st_size for path in (folder / "sharded").glob("*.distcp"))
    return found | {"checkpoint files": files}


def main() -> None:
    """Write this launch's results to the folder in the arguments."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, size, rank = Path(sys.argv[1]), os.environ["WORLD_SIZE"], int(os.environ["RANK"])
    found: dict[str, Any] = {"ddp": _under_ddp(folder / size)}
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    own = _batches(Share(int(rank), int(size)))
    found["ddp"]["equal weights"] = at_equal_weights(_batches(), own, nn.parallel.DistributedDataParallel)
    found |= {"fsdp": _under_fsdp(own), "costs": _costs(folder / size)}
    found["fsdp"]["equal weights"] = at_equal_weights(_batches(), own, _sharded)
    torch.save(found, folder / f"{size}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
