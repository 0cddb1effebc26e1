"""Processes of one training that were not given the same, or of which one stops: all end, with a line."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sparsify
from sparsify.errors import SparsifyError
from sparsify.processes.launch import Launch
from sparsify.processes.ranks import ALONE
from sparsify.training.folder.checkpoint import read_state
from sparsify.training.folder.restarts import goes_on, note_start
from sparsify.training.folder.run_folder import create
from sparsify.training.loop import optimizer
from sparsify.training.run import opening
from sparsify.training.setup.sync_batch_norm import with_sync_batch_norm

from ...ranks import launched
from .test_processes import SNIP, UNION, alone_in, network, recipe, records, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

PLUGIN = """
def half(value):
    return {number} * value

SCHEDULES = {{"half": half}}
"""


def said(given: dict[str, Any], out: str, **more: Any) -> tuple[str, int, str]:
    """Return the kind, the exit code and the text of the error of a training."""
    model = more.pop("model", None) or network()
    with pytest.raises(SparsifyError) as caught:
        sparsify.train(given, model=model, out=out, check=False, **more)
    return type(caught.value).__name__, caught.value.exit_code, str(caught.value)


def different(rank: int, folder: str) -> list[tuple[str, int, str]]:
    out = f"{folder}/run"
    found = [said(recipe(SNIP, log_every=2 + rank), out)]
    found.append(said(recipe({**SNIP, "schedule": "half"}), out, plugin=f"{folder}/plugin-{rank}.py"))
    wider = nn.Sequential(nn.Conv2d(1, 4 + rank, 3), nn.Flatten(), nn.Linear((4 + rank) * 36, 10))
    found.append(said(recipe(SNIP), out, model=wider))
    numbers = torch.zeros(64 + rank, 1, 8, 8), torch.arange(64 + rank) % 10
    given = recipe(SNIP)
    given["data"] = {"batch_size": 32}
    found.append(said(given, out, data=TensorDataset(*numbers)))
    return found


def test_processes_that_were_not_given_the_same_end_before_anything_is_written(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"plugin-{rank}.py").write_text(PLUGIN.format(number=1.0 + rank))
    first, second = launched(2, different, tmp_path / "out", str(tmp_path))
    expected = ["train.log_every is 2 there and 3 here", "plugin.sha256", "model: ", "65 training images instead of 64"]
    for (_, code, text), (_, other_code, other), part in zip(first, second, expected, strict=True):
        assert part in text and part in other and code == other_code == 2
        assert "\n" not in other
    assert not (tmp_path / "run").exists()


class Damaged(TensorDataset):
    """Data of which the second process cannot read an image."""

    bad = 0

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if os.environ["RANK"] == "1" and index == self.bad:
            raise OSError("cannot be read")
        return super().__getitem__(index)


def with_trouble(rank: int, folder: str, kind: str) -> dict[str, Any]:
    optimizer.WAIT = timedelta(seconds=8)
    asked, stopped = 0, Path(folder) / "stopped"

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3 and rank == 1 and kind == "hangs":
            stopped.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return False

    given = recipe(SNIP, checkpoint={"every": "1it"})
    more: dict[str, Any] = {"stop": stop}
    if kind.isdigit():
        given["data"] = {"batch_size": 32, "workers": 0}
        more["data"] = Damaged(torch.randn(128, 1, 8, 8), torch.arange(128) % 10)
        more["data"].bad = int(kind)
    started = time.monotonic()
    try:
        sparsify.train(given, model=network(), out=f"{folder}/run", check=False, **more)
    except Exception as error:  # noqa: BLE001 - what is asked
        code = getattr(error, "exit_code", None)
        if stopped.exists():
            os.kill(int(stopped.read_text()), signal.SIGKILL)  # as torchrun does
        return {"error": (type(error).__name__, code, str(error)), "seconds": time.monotonic() - started}
    return {"error": None}


def test_a_process_that_stops_ends_the_others_after_the_time_that_is_waited(tmp_path: Path) -> None:
    first, second = launched(2, with_trouble, tmp_path / "out", str(tmp_path), "hangs")
    assert second is None
    name, code, text = first["error"]
    assert (name, code) == ("ElsewhereError", 1) and "does nothing any more" in text and "\n" not in text
    assert read_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["step"] == 2


@pytest.mark.parametrize("image", ["10", "100"])  # read when the shape of images is looked for, and while training
def test_a_process_that_cannot_read_its_data_ends_all(tmp_path: Path, image: str) -> None:
    first, second = launched(2, with_trouble, tmp_path / "out", str(tmp_path), image)
    name, code, text = second["error"]
    assert name in ("SparsifyError", "RunError")
    assert text.startswith("train: data: ") and text.endswith("OSError: cannot be read")
    assert first["error"][:2] == ("ElsewhereError", code) and f"process 1: {text}" in first["error"][2]


def fetching(rank: int, folder: str) -> int:
    module: Any = opening
    module.is_here = lambda recipe: rank == 1  # as on two machines, one of which has the data
    result = sparsify.train(recipe(SNIP), model=network(rank), out=f"{folder}/run", check=False)
    return int(result.metrics["step"])


def test_what_is_fetched_by_one_process_is_waited_for_by_the_others(tmp_path: Path) -> None:
    assert launched(2, fetching, tmp_path / "out", str(tmp_path)) == [8, 8]


def test_a_restart_is_told_from_another_start(tmp_path: Path) -> None:
    given = sparsify.training.recipe.read.parse_recipe({**recipe(SNIP), "model": {"name": "cifar:resnet20"}})
    agent = Launch(0, 2, 0, 1, "/tmp/one")
    assert not goes_on(tmp_path, given, agent)
    create(tmp_path, given, overwrite=False)
    assert not goes_on(tmp_path, given, agent)
    note_start(tmp_path, agent)
    assert goes_on(tmp_path, given, agent)
    assert not goes_on(tmp_path, given, Launch(0, 2, 0, 0, "/tmp/one"))
    assert not goes_on(tmp_path, given, Launch(0, 2, 0, 1, "/tmp/other"))
    changed = given.model_copy(update={"train": given.train.model_copy(update={"seed": 7})})
    with pytest.raises(SparsifyError, match="train.seed is 1 there and 7 here"):
        goes_on(tmp_path, changed, agent)
    create(tmp_path, given, overwrite=True)
    assert not goes_on(tmp_path, given, agent)
    assert ALONE.first


def test_batch_norm_over_all_processes_keeps_its_masks() -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()]
    model: nn.Module = nn.Sequential(*layers)
    sparsify.convert(model)
    settings = {"sparsity": 0.5, "granularity": "unit", "scope": "layer", "schedule": "constant"}
    pruner = sparsify.Pruner(model, settings, 1, example_input=torch.zeros(2, 1, 8, 8))
    pruner.start()
    before, inputs = sparsify.get_masks(model), torch.randn(2, 1, 8, 8)
    expected = model.eval()(inputs)
    assert "1.weight" in before and not before["1.weight"].all()
    model = with_sync_batch_norm(model)
    assert isinstance(model.get_submodule("1"), nn.SyncBatchNorm)
    after = sparsify.get_masks(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(inputs), expected)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_four_and_in_three(tmp_path: Path) -> None:
    given, folder = recipe(UNION, log_every=1), tmp_path / "run"
    run(2, folder, given, stop_at=4)
    first, *_, last = run(4, folder, given, resume=True, stop_at=7)
    assert first["error"][0] == last["error"][0] == "RunStopped"
    [third, *_] = run(3, folder, given, resume=True)
    assert third["error"][:2] == ("SparsifyError", 2)
    assert "128 images make no equal parts for 3 processes" in third["error"][2]
    each = run(4, folder, given, resume=True)
    alone = alone_in(tmp_path / "alone", given)
    for one in each:
        for name, value in alone.items():
            torch.testing.assert_close(one["state"][name], value, rtol=1e-4, atol=1e-6)
    loaded = sparsify.get_masks(sparsify.load(folder / "model.safetensors", network()))
    assert all(torch.equal(alone[f"{name}_mask"], mask) for name, mask in loaded.items())
    assert [one["step"] for one in records(folder)] == list(range(1, 9))
