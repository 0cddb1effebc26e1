"""A small detector of ultralytics: units pruned, shrunk, exported with the same raw outputs."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify

# Layers as the package's own configurations have them: where from, how many, class, arguments.
CONFIGURATION: dict[str, Any] = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2f", [16, True]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "SPPF", [32, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C2f", [16]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}


def detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nn.Module:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    if "YOLO_CONFIG_DIR" not in os.environ:
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    environment = dict(os.environ)  # importing it sets numbers of threads there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = pytest.importorskip("ultralytics.nn.tasks", reason="ultralytics is not installed")
        torch.manual_seed(0)
        model: nn.Module = tasks.DetectionModel(CONFIGURATION, nc=3, verbose=False)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_detector_shrinks_and_exports_with_the_same_raw_outputs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = detector(monkeypatch, tmp_path), torch.randn(1, 3, 64, 64)
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    sparsify.convert(model)
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=x).start()
    report = sparsify.shrink(model, x)
    small, pruned = report.model, sparsify.fold(model)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in pruned.parameters())
    for shape in ((1, 3, 64, 64), (2, 3, 96, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(small(images)[0], pruned(images)[0], rtol=1e-4, atol=1e-3)
    sparsify.save(small, tmp_path / "small.onnx", format="onnx", example_input=x)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    with torch.no_grad():
        expected = small(x)[0]
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]), expected, rtol=1e-4, atol=1e-3
    )
