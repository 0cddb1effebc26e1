"""What docs/trainers.md shows is run here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify

TEXT = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


def block(section: str) -> str:
    text = TEXT.partition(f"## {section}")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]


def run(section: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block(section), section, "exec"), names)
    return names


def sparsity(model: torch.nn.Module) -> float:
    masks = sparsify.get_masks(model).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_the_trainer_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers (the extra 'hf')")
    monkeypatch.chdir(tmp_path)
    names = run("The Trainer of transformers")
    plain = transformers.GPT2LMHeadModel.from_pretrained("final")
    assert (
        sparsity(names["model"]) == 0.5 and float((plain.transformer.h[0].mlp.c_fc.weight == 0).float().mean()) == 0.5
    )


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning.pytorch", reason="needs lightning (the extra 'lightning')")
    monkeypatch.chdir(tmp_path)
    names = run("Lightning")
    assert names["pruning"].loop.metrics()["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert list((tmp_path / "kept").iterdir())


def test_a_loop_of_timm_goes_on_to_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm-run").mkdir()
    (tmp_path / "killed").mkdir()
    names = run("Loops such as timm's")
    model, ema, train = names["model"], names["ema"], names["train"]
    assert sparsity(model) == pytest.approx(0.5, abs=1e-3)
    masks = sparsify.get_masks(model)
    assert all(torch.equal(masks[name], mask) for name, mask in sparsify.get_masks(ema.module).items())
    train("killed", until=1)
    after, _ = train("killed")
    assert all(torch.equal(after.state_dict()[key], value) for key, value in model.state_dict().items())


def test_lora_on_a_pruned_model() -> None:
    pytest.importorskip("peft", reason="needs peft (the extra 'hf')")
    names = run("LoRA on a pruned model")
    assert sparsify.get_masks(names["merged"]).keys() == {"0.weight", "2.weight"}
