"""docs/format.md is enough to write a reader from: the one it quotes, without sparsify and torch, agrees."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsify
from sparsify.export.save import load, read_state, save
from sparsify.formats.codec.weight_encodings import ENCODINGS
from sparsify.surgery.shrink.cuts import apply_cuts
from tests.formats.file.example_reader import EXAMPLE, read_sparsify
from tests.formats.file.samples import CUTS, Version2
from tests.formats.model.test_round_trip import Tied
from tests.formats.toys import Holder, every_encoding, network, same_bits

PAGE = Path(__file__).parents[3] / "docs" / "format.md"


def cut_by_the_page(model: nn.Module, cuts: dict[str, Any]) -> None:
    """Cut a fresh model as the page says."""
    for group in cuts["removed"]:
        packed = bytes.fromhex(group["indices"])
        for name, dimensions in group["axes"].items():
            owner = model.get_submodule(name.rpartition(".")[0])
            tensor = getattr(owner, name.rpartition(".")[2])
            for dimension in dimensions:
                size = tensor.shape[dimension]
                kept = [i for i in range(size) if i // 8 >= len(packed) or not packed[i // 8] >> (i % 8) & 1]
                tensor = tensor.detach().index_select(dimension, torch.tensor(kept))
            setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor))
    for path, value in cuts.get("attributes", {}).items():
        setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], value)


@pytest.mark.parametrize("format", ["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_reader_written_from_the_page_agrees_with_the_writer(tmp_path: Path, dtype: torch.dtype, format: str) -> None:
    model = (
        nn.Sequential(network()[:2], Tied(), nn.BatchNorm1d(3))
        if format == "dense"
        else nn.Sequential(every_encoding(), Tied())
    )
    model = model.to(dtype)
    save(model, tmp_path / "a", format=format)
    tensors, masks, _ = read_sparsify.read(tmp_path / "a")
    state, own_masks, _ = read_state(tmp_path / "a")
    assert set(tensors) == set(state)
    assert set(masks) == set(own_masks)
    assert bool(masks) == (format == "sparse")
    for name, tensor in state.items():
        assert tuple(tensor.shape) == tensors[name].shape
        assert tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == tensors[name].tobytes(), name
    for name, mask in own_masks.items():
        assert np.array_equal(mask.numpy(), masks[name])


def test_the_reader_reads_the_recipe_and_the_model_from_the_metadata(tmp_path: Path) -> None:
    save(
        network(), tmp_path / "a", spec="timm:x", arguments={"num_classes": 3}, recipe="train: {}\n", metrics={"a": 0.5}
    )
    meta = read_sparsify.read(tmp_path / "a")[2]
    assert meta["spec"] == "timm:x"
    assert meta["arguments"] == '{"num_classes":3}'
    assert meta["recipe"] == "train: {}\n"
    assert meta["metrics"] == '{"a":0.5}'


def test_the_example_of_the_page_is_what_the_writer_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "__version__", "0.1.0")
    weight, keep = torch.full((24,), 7.0), torch.tensor([0, 9, 23])
    weight[keep] = torch.tensor([1.0, -0.0, 0.5])
    mask = torch.zeros(24, dtype=torch.bool)
    mask[keep] = True
    model = nn.Module()
    model.fc = Holder(weight.view(4, 6), mask.view(4, 6))
    model.fc.register_parameter("bias", nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    save(model, tmp_path / "a")
    page = PAGE.read_text()
    length, data = (bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", page, re.DOTALL))
    header, _ = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (spaces,) = re.findall(r"and (\d+) spaces at its end", page)
    example = length + header.replace("\n", "").encode() + b" " * int(spaces) + data
    assert (tmp_path / "a").read_bytes() == example
    (tmp_path / "b").write_bytes(example)
    state, masks, _ = read_state(tmp_path / "b")
    expected = torch.where(mask, weight, 0).view(4, 6)
    assert same_bits(state["fc.weight"], expected)
    assert torch.equal(masks["fc.weight"], mask.view(4, 6))
    assert state["fc.bias"].tolist() == [1, 2, 3, 4]


def test_the_example_of_a_cut_model_is_what_the_writer_writes(tmp_path: Path) -> None:
    model = apply_cuts(Version2(), CUTS)
    save(model, tmp_path / "a")
    tensors, _, meta = read_sparsify.read(tmp_path / "a")
    _, example = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert meta["cuts"] == example.replace("\n", "")
    fresh = Version2()
    cut_by_the_page(fresh, json.loads(meta["cuts"]))
    assert {name: tuple(value.shape) for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }
    fresh.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, strict=True)
    assert repr(fresh) == repr(model) == repr(load(tmp_path / "a", Version2()))
    assert all(same_bits(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_the_page_quotes_the_reader() -> None:
    (quoted,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert quoted == EXAMPLE.read_text()


def test_the_reader_runs_without_sparsify_and_torch(tmp_path: Path) -> None:
    save(every_encoding(), tmp_path / "a")
    guard = "import runpy, sys; sys.modules.update(torch=None, sparsify=None)"
    command = [sys.executable, "-c", f"{guard}; runpy.run_path(sys.argv.pop(1), run_name='__main__')"]
    done = subprocess.run([*command, EXAMPLE, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert "8.weight float32 (20, 30, 3)" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) == len(every_encoding().state_dict()) - 8  # the masks


def test_every_encoding_is_on_the_page_with_its_bytes() -> None:
    page = PAGE.read_text()
    for name, row in ENCODINGS.items():
        assert f"| `{name}` | {row.since} | " in page
    examples = dict(re.findall(r"`W\.(\w+)`(?: is)? `((?:[0-9a-f]{2} ?)+)`", page))
    kept = np.zeros((4, 6), bool)
    kept.flat[[0, 9, 23]] = True
    two_of_four = np.array([[1, 1, 0, 0, 0, 1, 0, 1], [1, 0, 1, 0, 0, 0, 1, 1]], bool)
    corner = np.zeros((4, 6), bool)
    corner[np.ix_([1, 3], [0, 2, 5])] = True
    masks = {"delta": kept, "n:m": two_of_four, "units": corner}
    assert len(examples) == len(masks)
    for name, mask in masks.items():
        stream = ENCODINGS[name].codec.encode(mask.reshape(-1), mask.shape)
        assert stream is not None and stream.tobytes() == bytes.fromhex(examples[f"{ENCODINGS[name].suffix}"[1:]])
