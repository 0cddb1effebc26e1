"""A model's file by its path, its folder, or its repository on a hub: a real one as to addresses and answers."""

import logging
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparsify
from sparsify.errors import RunError, SparsifyError
from sparsify.formats.io.locate import model_file
from tests.export.hub import hub_at


def saved(folder: Path, seed: int = 0) -> nn.Module:
    """Save a small masked model as the model of `folder` and return it."""
    torch.manual_seed(seed)
    model = sparsify.build_model("cifar:resnet20")
    sparsify.convert(model)
    sparsify.set_masks(model, {name: torch.rand(m.shape) < 0.1 for name, m in sparsify.get_masks(model).items()})
    folder.mkdir(parents=True)
    sparsify.save(model, folder / "model.safetensors", spec="cifar:resnet20")
    return model.eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start a hub and return the folder of its repositories; the cache is tmp_path / "cache"."""
    (tmp_path / "hub" / "someone" / "empty" / "main").mkdir(parents=True)
    with hub_at(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        yield tmp_path / "hub"


def same(left: nn.Module, right: nn.Module) -> bool:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(left(images), right(images))


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    model = saved(tmp_path / "a")
    for source in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "a" / "model.safetensors"):
        assert same(sparsify.load(source), model)
    (tmp_path / "b").mkdir()
    with pytest.raises(SparsifyError, match="b: a folder without a run or a model in it: no model.safetensors"):
        sparsify.load(tmp_path / "b")
    (tmp_path / "b" / "recipe.yaml").touch()
    with pytest.raises(SparsifyError, match=r"the run is not finished.*--resume .*b"):
        sparsify.load(tmp_path / "b")


def test_a_repository_is_fetched_and_loaded_and_then_comes_from_the_cache(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    model, other = saved(hub / "someone" / "small" / "main"), saved(hub / "someone" / "small" / "v2", seed=1)
    assert same(sparsify.load("hf:someone/small"), model)
    assert same(sparsify.load("hf:someone/small@v2"), other)
    path = model_file("hf:someone/small")
    assert path.is_relative_to(tmp_path / "cache" / "models--someone--small" / "snapshots")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (hub / "someone" / "small" / "main" / "model.safetensors").unlink()
    assert same(sparsify.load("hf:someone/small"), model)


def test_plain_weights_of_a_repository_are_loaded_into_a_given_model(hub: Path) -> None:
    (hub / "someone" / "plain" / "main").mkdir(parents=True)
    save_file({"weight": torch.eye(3), "bias": torch.ones(3)}, hub / "someone" / "plain" / "main" / "model.safetensors")
    layer = nn.Linear(3, 3)
    assert sparsify.load("hf:someone/plain", layer) is layer
    assert torch.equal(layer.weight.detach(), torch.eye(3))
    with pytest.raises(SparsifyError, match="the file does not name its model; pass the model"):
        sparsify.load("hf:someone/plain")


REFUSED = {
    "hf:someone/gated": "access is restricted: .* hf auth login",
    "hf:someone/nothing": "no such repository on the hub, or a private one",
    "hf:someone/small@v9": "the repository has no revision 'v9'",
    "hf:someone/empty": "the repository has no file model.safetensors",
    "hf:small": "is written hf:OWNER/NAME or hf:OWNER/NAME@REVISION$",
    "hf:": "is written hf:OWNER/NAME",
    "hf:a/b/c": "is written hf:OWNER/NAME",
    "hf:a/b@": "is written hf:OWNER/NAME",
    "hf://someone/small": r"did you mean 'hf:someone/small'\?$",
    "hf-hub:someone/small@v2": r"did you mean 'hf:someone/small@v2'\?$",
    "https://huggingface.co/someone/small/tree/main": r"did you mean 'hf:someone/small'\?$",
    "hf:-a/b": "no name that a repository can have: ",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_the_hub_does_not_give_is_one_line_that_says_why(hub: Path, source: str) -> None:
    (hub / "someone" / "small" / "main").mkdir(parents=True)
    with pytest.raises(SparsifyError, match=REFUSED[source]) as caught:
        sparsify.load(source)
    assert str(caught.value).startswith(f"{source}: ") and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_without_a_network_the_line_tells_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    with hub_at(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        pass  # nobody listens at its address any more
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between retries
    with caplog.at_level(logging.WARNING), pytest.raises(SparsifyError, match="cannot be fetched .*[Cc]onnect"):
        sparsify.load("hf:someone/small")
    assert not caplog.records  # not a line for each of its retries
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SparsifyError, match="hub's cache, and HF_HUB_OFFLINE forbids to fetch it"):
        sparsify.load("hf:someone/small")


def test_a_full_disk_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(RunError, match="no space left on the disk for the hub's cache"):
        model_file("hf:someone/small")


def test_a_run_that_is_not_finished_is_answered_with_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    (run := tmp_path / "a run").mkdir()
    (run / "recipe.yaml").touch()
    with pytest.raises(SparsifyError, match="not finished") as caught:
        model_file(run)
    assert shlex.split(str(caught.value).partition(": the run is")[2])[-2:] == ["--resume", str(run)]
