"""Trainings in two processes, as torchrun starts them: one run, that of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ElsewhereError, RunStopped, RunWarning, SparsifyError
from sparsify.pruning.report import SparsityWarning
from sparsify.training.folder.checkpoint import read_state

from ...ranks import launched

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

UNION = {"criterion": "magnitude", "schedule": {"name": "cyclic", "cycles": 2}, "after_cycles": "union", "every": "1it"}
SNIP = {"criterion": "snip", "schedule": "linear", "every": "2it"}


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, 10))


def recipe(prune: dict[str, Any] | None, *, limit: int = 386, **train: Any) -> dict[str, Any]:
    settings = {"epochs": 2, "seed": 1, "log_every": 2, "device": "cpu", "optimizer": {"name": "sgd", "lr": 0.05}}
    data = {"name": "digits", "batch_size": 128, "limit": limit, "test_batch_size": 77}
    section = None if prune is None else {"sparsity": 0.7, "scope": "global", **prune}
    return {"data": data, "train": {**settings, **train}, **({} if section is None else {"prune": section})}


def work(
    rank: int, given: dict[str, Any], out: str, stop_at: int = -1, die_at: int = -1, dropout: float = 0.0, **more: Any
) -> dict[str, Any]:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if rank == 1 and asked == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rank == 1 and asked == stop_at

    started = time.monotonic()
    try:
        result = sparsify.train(given, model=network(rank, dropout=dropout), out=out, stop=stop, check=False, **more)
    except (SparsifyError, RunStopped) as error:
        code = getattr(error, "exit_code", None)
        return {"error": (type(error).__name__, code, str(error)), "seconds": time.monotonic() - started}
    state = {name: value.clone() for name, value in result.model.state_dict().items()}
    return {"state": state, "metrics": result.metrics}


def more_of(rank: int, given: dict[str, Any], out: str, more: dict[str, Any]) -> dict[str, Any]:
    return work(rank, given, out, **more)


def run(size: int, folder: Path, given: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    place = folder.parent / f"{folder.name}-of-{size}-{len(list(folder.parent.iterdir()))}"
    return launched(size, more_of, place, given, str(folder), more)


def alone_in(folder: Path, given: dict[str, Any] | None, **more: Any) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)
        result = sparsify.train(given, model=network(), out=folder, check=False, **more)
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def records(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def with_snip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder and the results of a run in two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("snip") / "both"
    return folder, run(2, folder, recipe(SNIP))


def test_two_processes_train_as_one(tmp_path: Path, with_snip: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (one, other) = with_snip
    _hold_against_one_process(folder, one, other, SNIP, tmp_path)
    one, other = run(2, tmp_path / "both", recipe(UNION))
    _hold_against_one_process(tmp_path / "both", one, other, UNION, tmp_path)


def _hold_against_one_process(
    folder: Path, one: dict[str, Any], other: dict[str, Any], prune: dict[str, Any], tmp_path: Path
) -> None:
    # 386 images: the last batch of an epoch has two, which the first process takes.
    single = tmp_path / str(prune["criterion"])
    alone = alone_in(single, recipe(prune))
    assert_same(one["state"], other["state"])
    assert one["metrics"] | {"seconds": 0} == other["metrics"] | {"seconds": 0}
    for mine, theirs in zip(records(folder), records(single), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, value in alone.items():
        if name.endswith("_mask"):
            assert torch.equal(one["state"][name], value)
        else:
            torch.testing.assert_close(one["state"][name], value, rtol=1e-4, atol=1e-6)
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert sum(name.startswith("events") for name in files) == 1 and "model.safetensors" in files
    assert ("cycle-1.safetensors" in files) == (prune is UNION)


def test_a_stopped_run_goes_on_in_two_processes_to_the_same_bits_and_in_one(tmp_path: Path) -> None:
    given = recipe(UNION, log_every=3)
    dropping = {"dropout": 0.3}
    whole, _ = run(2, tmp_path / "whole", given, **dropping)
    folder = tmp_path / "run"
    first, second = run(2, folder, given, stop_at=5, **dropping)
    assert first["error"][0] == second["error"][0] == "RunStopped", (first, second)
    state = read_state(folder / "checkpoints" / "last.safetensors")
    assert state["step"] == 4 and len(state["processes"]) == 2 and state["conditions"]["processes"] == "2"
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    one, other = run(2, folder, given, resume=True, **dropping)
    assert_same(one["state"], whole["state"])
    assert_same(other["state"], whole["state"])
    assert records(folder) == records(tmp_path / "whole")
    with pytest.warns(RunWarning, match="resumes with processes 1 instead of 2"):
        alone = alone_in(copy, None, resume=True)
    assert [one["step"] for one in records(copy)] == [one["step"] for one in records(folder)]
    loaded = sparsify.get_masks(sparsify.load(copy / "model.safetensors", network()))
    assert all(torch.equal(alone[f"{name}_mask"], mask) for name, mask in loaded.items())


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_two_processes_goes_on_in_another_number_to_its_masks_and_losses(tmp_path: Path, size: int) -> None:
    whole, part, given = tmp_path / "whole", tmp_path / "part", recipe(UNION, checkpoint={"every": "3it", "keep": 3})
    run(2, whole, given)
    shutil.copytree(whole, part)
    for name in ("model", "checkpoints/last", "checkpoints/step-6"):  # step 3 stays, between two records
        (part / f"{name}.safetensors").unlink()
    run(size, part, given, resume=True)
    assert read_state(part / "checkpoints" / "last.safetensors")["conditions"]["processes"] == str(size)
    for mine, theirs in zip(records(part), records(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name in ("masks/cycle-1", "masks/cycle-2"):
        assert (part / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()
    found, wanted = (sparsify.get_masks(sparsify.load(one / "model.safetensors", network())) for one in (part, whole))
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())


def test_an_average_is_the_same_in_all_processes_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    given = recipe(UNION, ema={"decay": 0.5})
    whole, other = run(2, tmp_path / "whole", given)
    assert_same(whole["state"], other["state"])
    alone = alone_in(tmp_path / "alone", given)
    assert whole["metrics"]["test_weights"] == "average"
    for name, value in alone.items():
        torch.testing.assert_close(whole["state"][name], value, rtol=1e-4, atol=1e-6)
    live = read_state(tmp_path / "whole" / "checkpoints" / "last.safetensors")["model"]
    assert any(not torch.equal(whole["state"][name], value) for name, value in live.items())
    first, _ = run(2, tmp_path / "part", given, stop_at=5)
    assert first["error"][0] == "RunStopped"
    one, _ = run(2, tmp_path / "part", given, resume=True)
    assert_same(one["state"], whole["state"])


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, with_snip: tuple[Path, list[dict[str, Any]]]
) -> None:
    given = recipe(SNIP, checkpoint={"every": "1it"})
    folder, (whole, _) = with_snip
    first, second = run(2, tmp_path / "run", given, die_at=4)
    assert second is None
    name, code, text = first["error"]
    assert (name, code) == (ElsewhereError.__name__, 1) and "another of the processes has ended" in text
    assert first["seconds"] < 60
    assert read_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["step"] == 2
    one, _ = run(2, tmp_path / "run", given, resume=True)
    assert_same(one["state"], whole["state"])
    assert records(tmp_path / "run") == records(folder)


def mistakes(rank: int, folder: str) -> list[tuple[str, int, str]]:
    (Path(folder) / "taken").mkdir(exist_ok=True)
    (Path(folder) / "taken" / "notes.txt").touch()
    said = [work(rank, recipe(SNIP), f"{folder}/taken")["error"]]
    for data, train in (
        ({"batch_size": 3}, {}),
        ({"batch_size": 1}, {}),
        ({}, {"device": "cuda:0"}),
        ({"name": "digit"}, {}),
    ):
        given = recipe(SNIP, **train)
        given["data"].update(data)
        said.append(work(rank, given, f"{folder}/new")["error"])
    with_norms = {"model": {"name": "cifar:resnet20"}}
    synced, small = recipe(SNIP, sync_batch_norm=True) | with_norms, recipe(SNIP) | with_norms
    small["data"]["batch_size"] = 2
    for given in (synced, small):
        with pytest.raises(SparsifyError) as caught:
            sparsify.train(given, out=f"{folder}/new")
        said.append((type(caught.value).__name__, caught.value.exit_code, str(caught.value)))
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    said.append(work(rank, recipe(SNIP), f"{folder}/new")["error"])
    return said


def test_mistakes_are_one_line_on_all_processes_and_nothing_is_written(tmp_path: Path) -> None:
    first, second = launched(2, mistakes, tmp_path / "out", str(tmp_path))
    expected = [
        "holds other files and no run",
        "data.batch_size: 3 images make no equal parts for 2 processes; take 2 ",
    ]
    expected += ["data.batch_size: 1 images", "device", "digit", "train.sync_batch_norm", "batch norm cannot train"]
    expected += ["FSDP is asked for"]
    for (_, code, text), (_, other_code, other), part in zip(first, second, expected, strict=True):
        assert part in text and part in other and code == other_code == 2
        assert "\n" not in text
    assert (first[0][0], second[0][0]) == ("SparsifyError", "ElsewhereError")
    assert not (tmp_path / "new").exists()


def test_a_batch_is_shared_out_whole_and_once() -> None:
    from sparsify.training.batches.shares import Share

    for size in range(1, 7):
        for count in range(1, 40):
            seen: list[int] = []
            for rank in range(size):
                part, counted = Share(rank, size).of(count)
                chosen = list(range(count))[part]
                assert chosen and counted in (0, len(chosen))
                assert len(chosen) > 1 or count == 1
                seen += chosen[:counted]
            assert seen == list(range(count))
