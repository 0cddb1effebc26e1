import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sparsify.preprocess import beside, read

from .conftest import Outcome


def test_names_of_a_table_go_with_the_run_and_its_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("owl", "cat", "dog", "cat")
    for part in ("train", "test"):
        Path(part).mkdir()
        for index in range(len(names)):
            Image.new("RGB", (16, 16), (40 * index,) * 3).save(f"{part}/{index}.png")
        rows = [f"{index}.png,{name}\n" for index, name in enumerate(names)]
        Path(part, "labels.csv").write_text("file,label\n" + "".join(rows))
    Path("a.yaml").write_text(
        "model: timm:test_resnet\ndata: {name: 'folder:.', batch_size: 4, image_size: 16, workers: 0}\n"
        "train: {epochs: 1, device: cpu}\n"
    )
    assert sparsify("train", "a.yaml", "--out", "run").code == 0
    [found] = json.loads(sparsify("predict", "run", "test/0.png", "--json").out)
    assert {one["class"] for one in found["classes"]} == {"cat", "dog", "owl"}
    assert sparsify("export", "run", "--format", "dense", "--out", "dense.safetensors").code == 0
    assert read(beside("dense.safetensors")).classes == ("cat", "dog", "owl")
    assert sparsify("export", "run", "--out", "hub/").code == 0
    assert json.loads(Path("hub/config.json").read_text())["label_names"] == ["cat", "dog", "owl"]
    code, out, err = sparsify("eval", "run", "--device", "cpu")
    assert (code, err) == (0, "")
    for part in ("train", "test"):
        table = Path(part, "labels.csv")
        table.write_text(table.read_text().replace("owl", "bat"))
    with warnings.catch_warnings(action="always"):
        code, out, err = sparsify("eval", "run", "--device", "cpu")
    assert (
        code == 0 and err.count("\n") == 1 and err.startswith("sparsify: warning: run/model.safetensors: its classes ")
    )
    assert err.endswith("0 is 'cat', and 'bat' in the data and 2 more\n")
    Path("test/labels.csv").write_text("file,label\n0.png,eel\n")
    code, out, err = sparsify("eval", "run", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1) and "no training image has the label 'eel'" in err
