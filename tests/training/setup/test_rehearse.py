"""A look at a run before it starts: what it builds, and what it would refuse."""

from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from sparsify.errors import RunError, RunWarning, SparsifyError
from sparsify.training.data import fetching, readers
from sparsify.training.recipe.read import Recipe, parse_recipe
from sparsify.training.setup import estimate
from sparsify.training.setup.rehearse import rehearse


def recipe(**changes: Any) -> Recipe:
    given = {
        "model": "timm:test_resnet",
        "data": {"name": "digits", "limit": 60, "batch_size": 30},
        "train": {"epochs": 1, "device": "cpu"},
        "prune": {"sparsity": 0.5},
    }
    return parse_recipe(given | changes)


def test_numbers_are_those_of_the_model() -> None:
    before = torch.get_rng_state()
    found = rehearse(recipe(), check=False)
    assert found.parameters == 373_658 and found.left_out == ()
    assert torch.equal(torch.get_rng_state(), before)
    assert found.prepared is not None and found.prepared.training.data.train_count == 60
    # Half of what is masked goes, and a bit for each entry of a mask comes.
    masked = sum(mask.numel() for name, mask in found.prepared.training.model.named_buffers() if name.endswith("_mask"))
    assert found.bytes_dense - found.bytes_file == pytest.approx(masked * (2 - 1 / 8), abs=1)
    assert found.multiply_adds is not None and found.multiply_adds > found.parameters


def test_mistakes_of_the_run_are_met() -> None:
    with pytest.raises(SparsifyError, match="nothing_like_it"):
        rehearse(recipe(prune={"sparsity": 0.5, "ignore": ["nothing_like_it"]}), check=False)
    with pytest.raises(SparsifyError, match="beta"):
        rehearse(recipe(train={"device": "cpu", "optimizer": {"name": "sgd", "arguments": {"beta": 1}}}), check=False)


def test_data_that_would_be_downloaded_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ask", lambda url: None)
    found = rehearse(recipe(data={"name": "cifar100", "dir": str(tmp_path)}), check=False)
    assert found.prepared is None and "downloaded" in found.left_out[0]
    assert list(tmp_path.iterdir()) == []


def unreachable(url: str) -> None:
    raise OSError(f"no way to {url}")


def test_data_that_cannot_be_downloaded_are_refused_as_by_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ask", unreachable)
    with pytest.raises(SparsifyError, match=r"data\.dir: .*cifar-10-batches-py should hold .* \(no way to https://"):
        rehearse(recipe(data={"name": "cifar10", "dir": str(tmp_path)}), check=False)
    (tmp_path / "cifar-10-python.tar.gz").touch()  # of which the run needs no download
    rehearse(recipe(data={"name": "cifar10", "dir": str(tmp_path)}), check=False)


def test_published_weights_that_cannot_be_fetched_are_refused_as_by_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    named = {"name": "torchvision:squeezenet1_1", "pretrained": True}
    monkeypatch.setattr(fetching, "ask", lambda url: None)
    found = rehearse(recipe(model=named, data={"name": "digits", "limit": 60, "image_size": 32}), check=False)
    assert "published weights" in found.left_out[0]
    monkeypatch.setattr(fetching, "ask", unreachable)
    with pytest.raises(RunError, match="squeezenet1_1: its published weights cannot be fetched: no way to https://"):
        rehearse(recipe(model=named), check=False)
    with pytest.raises(SparsifyError, match="cifar:resnet20: there are no published weights"):
        rehearse(recipe(model={"name": "cifar:resnet20", "pretrained": True}), check=False)


def test_weights_in_a_cache_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ask", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").touch()
    assert fetching.weights_are_here("torchvision:squeezenet1_1")
    cached = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (cached / "snapshots" / "1").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    (cached / "snapshots" / "1" / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: unreachable(url))
    assert fetching.weights_are_here("timm:resnet18") and fetching.weights_are_here("timm:resnet18.none_such")
    assert fetching.weights_are_here("timm:hf-hub:timm/resnet18.a1_in1k")
    with pytest.raises(RunError, match="timm:resnet50: its published weights cannot be fetched: no way to https://"):
        fetching.weights_are_here("timm:resnet50")


def test_a_place_is_asked_as_a_download_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def opened(request: Request, timeout: float) -> BytesIO:
        asked.append(request)
        return BytesIO()

    monkeypatch.setattr(fetching, "urlopen", opened)
    fetching.ask("https://example.org/weights.pth")  # some places refuse other methods, and programs without a name
    assert [(one.get_method(), one.get_header("User-agent")) for one in asked] == [("GET", "torch.hub")]


def test_a_repository_that_keeps_other_files_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(url: str, timeout: float) -> None:
        asked.append(url)
        raise EntryNotFoundError("404")

    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", missing)
    assert not fetching.weights_are_here("timm:resnet18")
    assert asked[0].endswith("/resnet18.a1_in1k/resolve/main/config.json")


def test_a_sparsity_of_one_is_told_before_the_run() -> None:
    with pytest.warns(RunWarning, match=r"prune\.sparsity: 1 removes every weight that has a mask"):
        rehearse(recipe(prune={"sparsity": 1.0}), check=False)


def test_the_time_of_a_run_is_judged_by_a_few_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 10.0, 11.0, 13.0, 100.0, 104.0))  # steps of 10, 1 and 2 seconds, then a test batch of 4
    data = {"name": "digits", "limit": 60, "batch_size": 10, "test_batch_size": 25}
    settings = {"epochs": 5, "evaluate_every": 2, "device": "cpu"}
    prepared = rehearse(recipe(train=settings, data=data), check=False).prepared
    assert prepared is not None
    random_state = torch.get_rng_state()
    monkeypatch.setattr(estimate, "_SECONDS", 12.0)
    monkeypatch.setattr(estimate, "_now", lambda training: next(clock))
    # The first step is left out: 30 steps of 1.5 seconds, and 3 evaluations of 3 batches.
    assert estimate.estimate_seconds(prepared.training) == (30 * 1.5 + 3 * 3 * 4, 2)
    assert torch.equal(torch.get_rng_state(), random_state)
