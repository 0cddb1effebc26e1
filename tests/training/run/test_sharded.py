"""Trainings with `train.shard` in two processes: those of one process, with its files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.processes.shards import is_sharded, whole
from sparsify.training.folder.checkpoint import read_state

from ...ranks import launched
from .test_processes import SNIP, UNION, assert_same, recipe, records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


class Block(nn.Module):
    """A residual block; the first of its two layers has fewer rows than there are processes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Linear(width, 1), nn.LayerNorm(width), nn.Linear(1, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.tanh(self.down(self.norm(x))))


def network(seed: int = 0, *, norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    first = [nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7) if norm else nn.GroupNorm(1, 7), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*first, Block(252), nn.Sequential(Block(252), nn.Linear(252, 10)))


def work(rank: int, given: dict[str, Any], out: str, stop_at: int, resume: bool, norm: bool) -> dict[str, Any]:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return rank == 1 and asked == stop_at

    try:
        result = sparsify.train(given, model=network(rank, norm=norm), out=out, resume=resume, check=False, stop=stop)
    except (SparsifyError, sparsify.errors.RunStopped) as error:
        return {"error": (type(error).__name__, getattr(error, "exit_code", None), str(error))}
    cut = [name for name, one in result.model.named_parameters() if is_sharded(one)]
    state = {name: whole(value).detach().clone() for name, value in result.model.state_dict().items()}
    return {"state": state, "metrics": result.metrics, "cut": cut, "report": str(result.report)}


def run(
    folder: Path, given: dict[str, Any], size: int = 2, *, stop_at: int = -1, resume: bool = False, norm: bool = False
) -> list[dict[str, Any]]:
    place = folder.parent / f"{folder.name}-of-{size}-{len(list(folder.parent.iterdir()))}"
    return launched(size, work, place, given, str(folder), stop_at, resume, norm)


def with_shards(prune: dict[str, Any] | None, **train: Any) -> dict[str, Any]:
    return recipe(prune, shard=True, **train)


@pytest.mark.parametrize("prune", [SNIP, UNION], ids=["snip", "union"])
def test_a_model_in_parts_trains_as_a_whole_one(tmp_path: Path, prune: dict[str, Any]) -> None:
    more = {"clip_grad_norm": 0.5, "accumulate": 2, "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    more |= {"ema": {"decay": 0.5}} if prune is UNION else {}
    one, other = run(tmp_path / "run", with_shards(prune, **more))
    assert one["cut"] == other["cut"] == [name for name, _ in network().named_parameters()]
    alone, single = run(tmp_path / "alone", recipe(prune, **more), size=1)[0], tmp_path / "alone"
    assert_same(one["state"], other["state"])
    assert one["report"] == alone["report"]
    for mine, theirs in zip(records(tmp_path / "run"), records(single), strict=True):
        assert mine.pop("test_weights", None) == theirs.pop("test_weights", None)
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, value in alone["state"].items():
        if name.endswith("_mask"):
            assert torch.equal(one["state"][name], value), name
        else:
            torch.testing.assert_close(one["state"][name], value, rtol=1e-4, atol=1e-5)
    assert {path.name for path in (tmp_path / "run").rglob("*.safetensors")} == {
        path.name for path in single.rglob("*.safetensors")
    }
    loaded = sparsify.load(tmp_path / "run" / "model.safetensors", network())
    for name, mask in sparsify.get_masks(loaded).items():
        assert torch.equal(mask, one["state"][f"{name}_mask"])
        kept = torch.where(mask, one["state"][name], 0)
        assert torch.equal(torch.where(mask, loaded.state_dict()[name], 0), kept)


def test_a_stopped_run_in_parts_goes_on_to_the_same_bits_and_in_one_process(tmp_path: Path) -> None:
    given = with_shards(UNION, ema={"decay": 0.5}, epochs=1, recalibrate_batch_norm=1)
    whole_run, _ = run(tmp_path / "whole", given, norm=True)
    first, second = run(tmp_path / "run", given, stop_at=3, norm=True)
    assert first["error"][0] == second["error"][0] == "RunStopped"
    kept = read_state(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert kept["step"] == 2 and kept["conditions"]["processes"] == "2 (train.shard)"
    built = sparsify.convert(network(norm=True)).model.state_dict()
    assert {key: value.shape for key, value in kept["model"].items()} == {key: one.shape for key, one in built.items()}
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    one, other = run(tmp_path / "run", given, resume=True, norm=True)
    assert_same(one["state"], whole_run["state"])
    assert_same(other["state"], whole_run["state"])
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    alone = run(tmp_path / "copy", given, size=1, resume=True, norm=True)[0]
    assert alone["cut"] == [] and alone["state"].keys() == one["state"].keys()
    assert alone["metrics"]["step"] == one["metrics"]["step"]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_in_parts_goes_on_whole_and_a_whole_one_in_parts(tmp_path: Path, size: int) -> None:
    momentum = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    given = {"epochs": 1, "checkpoint": {"every": "2it"}, "optimizer": momentum}
    whole_run = run(tmp_path / "whole", recipe(UNION, **given), size=1)[0]
    for name, before, after in (("parts", True, False), ("other", False, True)):
        stopped = run(tmp_path / name, recipe(UNION, shard=before, **given), stop_at=3)
        assert stopped[0]["error"][0] == "RunStopped"
        one = run(tmp_path / name, recipe(UNION, shard=after, **given), size, resume=True)[0]
        assert one["cut"] == ([name for name, _ in network().named_parameters()] if after else [])
        for mine, theirs in zip(records(tmp_path / name), records(tmp_path / "whole"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
        masks = [key for key in whole_run["state"] if key.endswith("_mask")]
        assert [key for key in masks if not torch.equal(one["state"][key], whole_run["state"][key])] == []


class Scaled(nn.Module):
    """A model with a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = network(), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layers(x)


def mistakes(rank: int, out: str) -> list[tuple[str, int, str]]:
    found = []
    transposed = nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 10))
    for given, model in (
        (with_shards(SNIP, optimizer="lamb"), network()),
        (with_shards(None), Scaled()),
        (with_shards(SNIP), transposed),
        (recipe({**UNION, "every": "1ep", "schedule": {"name": "cyclic", "cycles": 40}}), network()),
        (recipe({**SNIP, "rules": [{"match": ["none"], "sparsity": 0.5}]}), network()),
    ):
        with pytest.raises(SparsifyError) as caught:
            sparsify.train(given, model=model, out=out, check=False)
        found.append((type(caught.value).__name__, caught.value.exit_code, str(caught.value)))
    return found


def test_what_all_processes_find_is_one_line_of_the_first_and_nothing_is_written(tmp_path: Path) -> None:
    first, second = launched(2, mistakes, tmp_path / "out", str(tmp_path / "new"))
    expected = [
        "train.optimizer: lamb does not go with train.shard",
        "fully_shard does not take",
        "0.weight is sharded",
        "40 cycles do not fit",
        "prune.rules.0.match",
    ]
    for (kind, code, text), (other_kind, other_code, _), part in zip(first, second, expected, strict=True):
        assert part in text and "\n" not in text and code == other_code == 2
        assert (kind, other_kind) == ("SparsifyError", "ElsewhereError")
    assert not (tmp_path / "new").exists()
