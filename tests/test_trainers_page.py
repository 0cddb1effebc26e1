"""What docs/trainers.md shows is run here."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sparsify
from sparsify.formats.file.inspection import inspect_file
from sparsify.training.recipe.read import parse_recipe
from sparsify.training.recipe.yaml_lines import parse_yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "trainers.md").read_text()
_OF_LIGHTNING = "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"
pytestmark = [
    *([pytest.mark.filterwarnings(_OF_LIGHTNING)] if find_spec("lightning") else []),
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


def test_the_line_of_a_recipe_names_trackers() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    recipe = parse_recipe({"model": "cifar:resnet20", **parse_yaml(text, "page")[0]})
    assert recipe.train.trackers == ("wandb", "mlflow")


def test_lora_on_a_pruned_model() -> None:
    pytest.importorskip("peft", reason="needs peft (the extra 'hf')")
    names = run("LoRA on a pruned model")
    assert sparsify.get_masks(names["merged"]).keys() == {"0.weight", "2.weight"}


@pytest.mark.slow
def test_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: it sets environment variables, threads and handlers of signals."""
    if find_spec("ultralytics") is None:
        pytest.skip("needs ultralytics")
    for part in ("train", "val"):
        for index in range(4):
            image, label = (tmp_path / "data" / kind / part / str(index) for kind in ("images", "labels"))
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(image.with_suffix(".png"))
            label.with_suffix(".txt").write_text(f"{index % 2} 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images/train\nval: images/val\nnames: {{0: a, 1: b}}\n"
    )
    code = f"""
{block("ultralytics")}
import ultralytics
model = ultralytics.YOLO("yolo11n.yaml")
for event, function in EVENTS.items():
    model.add_callback(event, function)
model.train(data="data.yaml", epochs=2, imgsz=64, batch=2, workers=0, plots=False, device="cpu", amp=False, val=False)
"""
    settings = {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    given = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    contents = inspect_file(tmp_path / "pruned.safetensors")
    assert contents.sparsity == pytest.approx(0.5, abs=0.01)
