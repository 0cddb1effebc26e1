"""What docs/export.md shows is run here."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sparsify
from cli import main
from sparsify import preprocess
from sparsify.export.registry import FORMATS
from tests.random_masks import randomly_masked

TEXT = (Path(__file__).parents[1] / "docs" / "export.md").read_text()


NAMES = [f"class {letter}" for letter in "abcdefghij"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which all commands of the page were run, those of tools that are missing aside."""
    folder = tmp_path_factory.mktemp("export")
    model = randomly_masked(sparsify.build_model("timm:test_resnet", num_classes=10).eval(), 0.2)
    (folder / "runs" / "a").mkdir(parents=True)
    sparsify.save(
        model,
        folder / "runs" / "a" / "model.safetensors",
        spec="timm:test_resnet",
        arguments={"num_classes": 10},
        extra={"input_shape": [3, 32, 32], "preprocess": json.loads(blocks("json")[0]) | {"classes": NAMES}},
    )
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    [commands] = blocks("sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands.splitlines():
            if "onnx" in line and not _installed("onnx", "onnxscript"):
                continue
            with pytest.raises(SystemExit) as caught:
                main(shlex.split(line)[1:])
            assert caught.value.code == 0, line
    return folder


def _installed(*names: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in names)


def test_the_python_shown_runs_and_gives_the_masked_models_outputs(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    names: dict[str, Any] = {}
    for code in blocks("python"):
        if not _installed(*re.findall(r"^(?:import|from) (onnxruntime|compressed_tensors)", code, re.MULTILINE)):
            continue
        exec(compile(code, "export.md", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[shown[0] in NAMES] == "semi-structured: 0 of 16 weights"
    x = torch.zeros(4, 3, 32, 32)
    with torch.no_grad():
        wanted = sparsify.load("model.safetensors")(x)
        found = [names["model"].eval()(x), names["program"].module()(x), torch.export.load("mine.pt2").module()(x)]
        found += [names["outputs"], names["engine"](x)]
        if "session" in names:
            found.append(torch.as_tensor(names["logits"]))
    for logits in found:
        assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_ten_lines_of_plain_onnx_runtime_do_what_the_file_says(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(exported)
    [code] = [code for code in blocks("python") if "photo.png" in code]
    names: dict[str, Any] = {}
    exec(compile(code, "export.md", "exec"), names)
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 11
    given = preprocess.read("model.preprocess.json").inputs(["photo.png"])
    assert np.abs(names["x"] - given).max() < 1e-6
    with torch.no_grad():
        wanted = sparsify.load("model.safetensors")(torch.from_numpy(given))
    assert torch.allclose(torch.as_tensor(names["scores"]), wanted, atol=1e-4)
    assert capsys.readouterr().out.strip() == NAMES[int(wanted.argmax())]


def test_what_was_imported_is_the_dense_export(exported: Path) -> None:
    from safetensors.torch import load_file

    found, wanted = load_file(exported / "again.safetensors"), load_file(exported / "dense.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in found)


def test_every_way_out_is_told_of_here_or_on_its_own_page() -> None:
    for name in FORMATS:
        assert f"`{name}`" in TEXT or f"[{name}]({name}.md)" in TEXT
