"""What docs/masks.md shows is run here."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from cli import main
from sparsify.formats.file.inspection import inspect_file

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "masks.md").read_text()
QUICK = ["--model", "timm:test_resnet", "--device", "cpu", "--set", "data.batch_size=500"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a line of the page in an empty folder, a training as a short one of a small network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")

    def line(text: str) -> None:
        words = shlex.split(text.replace("cifar:resnet20", "timm:test_resnet"), comments=True)[1:]
        if words[0] == "train":
            words = [*words, *QUICK, "--set", "train.epochs=1"]
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0, text

    return line


def test_the_commands_find_a_ticket_and_train_it(run: Callable[[str], None], tmp_path: Path) -> None:
    for line in blocks("sh")[1].replace("\\\n", " ").splitlines():
        run(line)
    found, ticket = (inspect_file(tmp_path / "runs" / name / "model.safetensors") for name in ("found", "ticket"))
    assert found.sparsity == ticket.sparsity and (found.sparsity or 0) > 0.5
    for name, mask in sparsify.load_masks(tmp_path / "runs" / "found").items():
        assert torch.equal(mask, sparsify.load_masks(tmp_path / "masks.safetensors")[name])
        assert torch.equal(mask, sparsify.load_masks(tmp_path / "runs" / "ticket")[name])
    record = json.loads((tmp_path / "runs" / "ticket" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["sparsity"] == pytest.approx(found.sparsity)
    assert found.metadata.spec is not None
    model = sparsify.build_model(found.metadata.spec, **found.metadata.arguments)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "runs" / "found")
    for line in blocks("sh")[0].splitlines():
        run(line)
    masked = sparsify.load(tmp_path / "masked.safetensors")
    weight = model.get_parameter("layer1.0.conv1.weight")
    mask = sparsify.get_masks(masked)["layer1.0.conv1.weight"]
    assert torch.equal(masked.get_parameter("layer1.0.conv1.weight"), torch.where(mask, weight, 0))


def test_the_loop_shown_removes_a_fifth_of_the_rest_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    seen = []
    load = torch.nn.Module.load_state_dict

    def spy(self: torch.nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name: mask.clone() for name, mask in sparsify.get_masks(self).items()})
        return load(self, state, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", spy)
    exec(compile(blocks("python")[0], "masks.md", "exec"), scope)
    rounds = [masks["1.weight"] for masks in seen[:3]]
    assert [int((~mask).sum()) for mask in rounds] == [409, 737, 999]  # floor(s * 2,048)
    assert all(bool((later <= earlier).all()) for earlier, later in zip(rounds, rounds[1:], strict=False))
    ticket, early = scope["ticket"], scope["early"]
    assert torch.equal(sparsify.get_masks(ticket)["1.weight"], rounds[-1]) and list(seen[0]) == ["1.weight"]
    moved = ticket[1].weight.detach() != early["1.weight"]
    assert bool(moved[rounds[-1]].any()) and not bool(moved[~rounds[-1]].any())


def test_the_averages_shown_carry_the_live_masks() -> None:
    scope: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "masks.md", "exec"), scope)
    mask = sparsify.get_masks(scope["live"])["1.weight"]
    assert int(mask.sum()) == 320
    for average in (scope["average"].module, scope["own"]):
        assert torch.equal(sparsify.get_masks(average)["1.weight"], mask)


def test_zeros_stay_zero_in_integers_once_a_model_is_folded() -> None:
    exec(compile(blocks("python")[2], "masks.md", "exec"), {})
