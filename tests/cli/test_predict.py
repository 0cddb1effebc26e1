import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sparsify as library
from sparsify.preprocess import Preprocessing

from .conftest import Outcome

SPEC = "timm:test_resnet"
HOW = Preprocessing("RGB", 36, (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 3, ("cat", "dog", "owl"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = library.build_model(SPEC, num_classes=3)
    library.convert(model)
    about = {"input_shape": [3, 32, 32], "preprocess": HOW.to_dict()}
    library.save(model, tmp_path / "a.safetensors", spec=SPEC, arguments={"num_classes": 3}, extra=about)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def wanted(folder: Path) -> torch.Tensor:
    inputs = HOW.inputs([folder / "0.png", folder / "1.png"])
    with torch.no_grad():
        return library.load(folder / "a.safetensors")(torch.from_numpy(inputs)).softmax(1)


def check(outcome: Outcome, folder: Path) -> None:
    assert outcome.code == 0, outcome.err
    for one, shares in zip(json.loads(outcome.out), wanted(folder), strict=True):
        found = {best["class"]: best["probability"] for best in one["classes"]}
        assert list(found) == [HOW.classes[index] for index in shares.argsort(descending=True)]
        assert [found[name] for name in HOW.classes] == pytest.approx(shares.tolist(), abs=1e-5)


def test_a_sparse_file_names_the_classes(folder: Path, sparsify: Callable[..., Outcome]) -> None:
    images = [folder / "0.png", folder / "1.png"]
    check(sparsify("predict", folder / "a.safetensors", *images, "--json"), folder)
    outcome = sparsify("predict", folder / "a.safetensors", *images, "--top", 1)
    first = HOW.classes[int(wanted(folder)[0].argmax())]
    assert outcome.out.splitlines()[0].startswith(f"{folder / '0.png'}: {first} ") and "%" in outcome.out


@pytest.mark.skipif(not find_spec("onnxruntime") or not find_spec("onnxscript"), reason="needs ONNX and its runtime")
@pytest.mark.parametrize("batch", [None, 3])
def test_an_onnx_file_gives_the_same(folder: Path, batch: int | None, sparsify: Callable[..., Outcome]) -> None:
    model = library.load(folder / "a.safetensors")
    about = {"preprocess": HOW.to_dict()}
    example = torch.zeros(1, 3, 32, 32)
    library.save(model, folder / "b.onnx", format="onnx", example_input=example, batch_size=batch, extra=about)
    assert json.loads((folder / "b.preprocess.json").read_text()) == HOW.to_dict()
    check(sparsify("predict", folder / "b.onnx", folder / "0.png", folder / "1.png", "--json"), folder)


def test_the_engine_gives_the_same(folder: Path, sparsify: Callable[..., Outcome]) -> None:
    images = [folder / "0.png", folder / "1.png"]
    check(sparsify("predict", folder / "a.safetensors", *images, "--json", "--engine"), folder)


def test_a_file_that_does_not_know_its_images_needs_to_be_told(folder: Path, sparsify: Callable[..., Outcome]) -> None:
    model = library.load(folder / "a.safetensors")
    library.save(model, folder / "plain.safetensors", spec=SPEC, arguments={"num_classes": 3})
    outcome = sparsify("predict", folder / "plain.safetensors", folder / "0.png")
    assert outcome.code == 2 and "give that as --preprocess FILE" in outcome.err
    told = folder / "a.preprocess.json"
    outcome = sparsify("predict", folder / "plain.safetensors", folder / "0.png", "--preprocess", told)
    assert outcome.code == 0 and "owl" in outcome.out


def test_images_that_the_model_does_not_take_are_told_in_one_line(
    folder: Path, sparsify: Callable[..., Outcome]
) -> None:
    grey = {"mode": "L", "mean": [0.5], "std": [0.2], "channels": 1}
    (folder / "how.json").write_text(json.dumps(HOW.to_dict() | grey))
    outcome = sparsify("predict", folder / "a.safetensors", folder / "0.png", "--preprocess", folder / "how.json")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "does not take images of 1x32x32" in outcome.err


@pytest.mark.skipif(not find_spec("onnxruntime") or not find_spec("onnx"), reason="needs ONNX and its runtime")
def test_onnx_files_of_others_are_told_in_one_line(folder: Path, sparsify: Callable[..., Outcome]) -> None:
    import onnx
    from onnx import TensorProto, helper

    (folder / "how.json").write_text(json.dumps(HOW.to_dict()))
    for name, shape, kind, extra, part in (
        ("flat", [1, 8], TensorProto.FLOAT, "{}", "predict gives one input"),
        ("bytes", [1, 3, 32, 32], TensorProto.UINT8, "{}", "does not take images of 3x32x32"),
        ("text", [1, 3, 32, 32], TensorProto.FLOAT, "{", "are not JSON"),
    ):
        given, out = (helper.make_tensor_value_info(one, kind, shape) for one in ("x", "y"))
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, {"sparsify.extra": extra})
        onnx.save(model, folder / f"{name}.onnx")
        outcome = sparsify("predict", folder / f"{name}.onnx", folder / "0.png", "--preprocess", folder / "how.json")
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and part in outcome.err, outcome.err
