"""The commands on a folder for the hub, and on the hub: what docs/hub.md shows."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sparsify as library
from tests.cli.conftest import Outcome
from tests.export.hub import hub_at
from tests.random_masks import randomly_masked

Run = Callable[..., Outcome]
PAGE = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start a hub in an empty folder that holds a run, and return the hub's folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = library.build_model("timm:test_resnet", num_classes=10)
    torch.save(model.state_dict(), "weights.pt")
    randomly_masked(model, 0.1, ignore=["last"])
    Path("runs/a").mkdir(parents=True)
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}, "extra": {"input_shape": [3, 32, 32]}}
    recipe = "model: timm:test_resnet\ndata: {name: digits}\n"
    library.save(model, "runs/a/model.safetensors", **about, recipe=recipe)
    with hub_at(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        yield tmp_path / "hub"


def test_the_commands_shown_do_what_they_say(sparsify: Run, run: Path) -> None:
    [block] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "hf":
            (run / "OWNER" / "NAME").mkdir(parents=True)
            for revision in ("main", "v1.0"):
                (run / "OWNER" / "NAME" / revision).symlink_to(Path(words[2]).resolve())
            continue
        code, out, err = sparsify(*words)
        assert (code, err) == (0, ""), line
        if words[0] == "export" and "hub" in words:
            assert out.splitlines()[-1] == "put it on the hub with: hf upload OWNER/NAME small"
        if words[0] == "eval":
            assert "on digits (297 images)" in out
    assert torch.equal(
        library.get_masks(library.load("masked.safetensors"))["conv1.0.weight"],
        library.get_masks(library.load("runs/a"))["conv1.0.weight"],
    )


@pytest.mark.parametrize("command", ["inspect", "eval", "export", "convert"])
def test_a_repository_that_is_not_there_is_one_line(sparsify: Run, run: Path, command: str) -> None:
    args = {"export": ["--out", "x"], "convert": ["--model", "timm:test_resnet", "--out", "x"]}.get(command, [])
    code, out, err = sparsify(command, "hf:OWNER/NAME", *args)
    assert (code, out, err.count("\n")) == (2, "", 1) and not Path("x").exists()
    assert err.startswith("sparsify: hf:OWNER/NAME: no such repository on the hub, or a private one")


def test_an_older_folder_that_was_edited_is_one_line(sparsify: Run, run: Path) -> None:
    args = ["export", "runs/a", "--format", "hub", "--out", "small"]
    assert sparsify(*args).code == 0 and sparsify(*args).code == 0
    card = Path("small/README.md").read_text() + "Mine.\n"
    Path("small/README.md").write_text(card)
    code, out, err = sparsify(*args)
    assert (code, out, err.count("\n")) == (
        2,
        "",
        1,
    ) and "cannot write small: the folder exists and is not empty" in err
    assert Path("small/README.md").read_text() == card
