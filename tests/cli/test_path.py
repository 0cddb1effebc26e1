"""From a checkpoint of torchvision to classified images, in five commands."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sparsify as library
from sparsify.models import build_model
from sparsify.preprocess import beside, read
from sparsify.surgery.mask_state.masks import masked_weights

from .conftest import Outcome

COLOURS = {"blue": 2, "green": 1, "red": 0}


def write_images(root: Path) -> None:
    """Write 120 images of 32 pixels for training and 60 for the test: noise with one channel brighter."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for name, channel in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 95
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(not find_spec("onnxruntime") or not find_spec("onnxscript"), reason="needs ONNX and its runtime")
def test_a_checkpoint_is_pruned_tuned_exported_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data")
    torch.save({"state_dict": build_model("torchvision:resnet18").state_dict()}, "resnet18.pt")
    (tmp_path / "tune.yaml").write_text(
        "model: {name: torchvision:resnet18, checkpoint: pruned.safetensors}\n"
        "data: {name: folder:data, batch_size: 40, image_size: 32, workers: 0}\n"
        "train: {epochs: 4, device: cpu, optimizer: {name: sgd, lr: 0.02}, evaluate_every: 4}\n"
    )

    def run(*args: object) -> str:
        outcome = sparsify(*args)
        assert outcome.code == 0, outcome.err
        return outcome.out

    run("convert", "resnet18.pt", "--model", "torchvision:resnet18", "--sparsity", "0.8", "--ignore", "last",
        "--image-size", 32, "--out", "pruned.safetensors")  # fmt: skip
    run("train", "tune.yaml", "--out", "run", "--no-verify")
    shown = run("eval", "run", "--device", "cpu")
    run("export", "run", "--out", "model.onnx")
    images = sorted((tmp_path / "data" / "test").rglob("*.png"))
    found = json.loads(run("predict", "model.onnx", *images, "--top", 1, "--json"))

    masks = [weight.mask for weight in masked_weights(library.load("run")).values()]
    kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert kept == pytest.approx(0.2, abs=1e-3)
    right = [one["classes"][0]["class"] == Path(one["image"]).parent.name for one in found]
    assert f"accuracy {100 * np.mean(right):.1f} %" in shown and np.mean(right) > 0.5
    import onnxruntime

    how = read(beside("model.onnx"))
    session = onnxruntime.InferenceSession("model.onnx")
    [scores] = session.run(None, {session.get_inputs()[0].name: how.inputs(images)})
    assert [how.classes[index] for index in scores.argmax(1)] == [one["classes"][0]["class"] for one in found]
