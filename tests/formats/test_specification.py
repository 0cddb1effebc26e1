"""docs/format.md is enough to write a reader from: one is written here, without sparsify and torch, and agrees."""

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsify
from sparsify.formats.files import read_state, save

from .test_round_trip import Tied
from .toys import Holder, network, same_bits

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
TYPES = {"BOOL": "u1", "U8": "u1", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}


def independent_reader(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return tensors, masks and metadata, from what the page says and nothing else."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    header = json.loads(text)
    meta = header.pop("__metadata__")
    assert (meta["format"], meta["version"]) in (("sparsify", "1"), ("pt", "1"))
    blank = text.replace(f'"header_crc32":"{meta["header_crc32"]}"'.encode(), b'"header_crc32":"00000000"')
    assert f"{zlib.crc32(blank):08x}" == meta["header_crc32"]
    stored = {}
    for name, checksum in zip(sorted(header), meta["crc32"].split(" "), strict=True):
        begin, end = header[name]["data_offsets"]
        assert f"{zlib.crc32(data[begin:end]):08x}" == checksum
        stored[name] = np.frombuffer(data[begin:end], TYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
    tensors, masks = {}, {}
    for name, entry in json.loads(meta.get("masked", "{}")).items():
        size, packed = math.prod(entry["shape"]), stored.pop(f"{name}.mask")
        mask = np.array([packed[i // 8] >> (i % 8) & 1 for i in range(size)], bool).reshape(entry["shape"])
        if entry["encoding"] == "bitmask":
            kept = stored.pop(f"{name}.kept")
            tensors[name] = np.zeros(entry["shape"], kept.dtype)
            tensors[name][mask] = kept
        else:
            tensors[name] = stored.pop(name)
        masks[name] = mask
    tensors.update(stored)
    for alias, name in json.loads(meta.get("aliases", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors, masks, meta


@pytest.mark.parametrize("format", ["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_reader_written_from_the_page_agrees_with_the_writer(tmp_path: Path, dtype: torch.dtype, format: str) -> None:
    model = (
        nn.Sequential(network()[:2], Tied(), nn.BatchNorm1d(3))
        if format == "dense"
        else nn.Sequential(network(), Tied())
    )
    model = model.to(dtype)
    save(model, tmp_path / "a", format=format)
    tensors, masks, _ = independent_reader(tmp_path / "a")
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
    meta = independent_reader(tmp_path / "a")[2]
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
    (header,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (spaces,) = re.findall(r"and (\d+) spaces at its end", page)
    example = length + header.replace("\n", "").encode() + b" " * int(spaces) + data
    assert (tmp_path / "a").read_bytes() == example
    (tmp_path / "b").write_bytes(example)
    state, masks, _ = read_state(tmp_path / "b")
    expected = torch.where(mask, weight, 0).view(4, 6)
    assert same_bits(state["fc.weight"], expected)
    assert torch.equal(masks["fc.weight"], mask.view(4, 6))
    assert state["fc.bias"].tolist() == [1, 2, 3, 4]
