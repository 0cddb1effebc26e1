"""What compressed-tensors reads, decoded here by its documented layout, and by itself where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.save import write
from tests.random_masks import randomly_masked

SHAPES = {"conv": (8, 4, 3, 3), "points": (6, 8, 1, 1), "fc": (5, 13)}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3), "points": nn.Conv2d(8, 6, 1), "fc": nn.Linear(13, 5)}).to(dtype)
    model["norm"] = nn.BatchNorm2d(8)
    randomly_masked(model, 0.3, ignore=[])
    with torch.no_grad():
        model["fc"].weight[0, :2] = torch.tensor([-0.0, float("nan")])
        model["fc"].weight_mask[0, :3] = True
    return model


def decoded(folder: Path, layer: str) -> np.ndarray:
    """Decode one weight: bitmask rows are packed along the last dimension, the lowest bit first."""
    stored = load_file(folder / "model.safetensors")
    shape = stored[f"{layer}.shape"].tolist()
    dense = np.zeros(shape, stored[f"{layer}.compressed"].dtype)
    values = iter(stored[f"{layer}.compressed"])
    for place in np.ndindex(*shape):
        byte = stored[f"{layer}.bitmask"][*place[:-1], place[-1] // 8]
        if byte >> (place[-1] % 8) & 1:
            dense[place] = next(values)
    assert next(values, None) is None
    assert stored[f"{layer}.row_offsets"].shape == (0,) and stored[f"{layer}.row_offsets"].dtype == np.int64
    assert stored[f"{layer}.shape"].dtype == np.int64
    return dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_come_back_bit_for_bit_by_the_documented_layout(dtype: torch.dtype, tmp_path: Path) -> None:
    model = network(dtype)
    sparsify.save(model, tmp_path / "out", format="compressed-tensors")
    folded = sparsify.fold(model).state_dict()
    bits = {torch.float32: np.int32, torch.float16: np.int16}[dtype]
    for layer, shape in SHAPES.items():
        found, wanted = decoded(tmp_path / "out", layer), folded[f"{layer}.weight"].numpy()
        assert found.shape == shape and np.array_equal(found.view(bits), wanted.view(bits))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    rest = {f"{layer}.{part}" for layer in SHAPES for part in ("shape", "compressed", "bitmask", "row_offsets")}
    assert stored.keys() - rest == folded.keys() - {f"{layer}.weight" for layer in SHAPES}
    assert np.array_equal(stored["norm.running_var"], folded["norm.running_var"].numpy())
    assert np.signbit(stored["fc.compressed"][0]) and np.isnan(stored["fc.compressed"][1])


def test_the_bitmask_worked_by_hand(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 2, bias=False))
    sparsify.convert(model)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0, 0] = mask[0, 9] = mask[1, 3] = True
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(20.0).reshape(2, 10) + 1)
    sparsify.set_masks(model, {"0.weight": mask})
    size = sparsify.save(model, tmp_path / "out", format="compressed-tensors")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["0.bitmask"].tolist() == [[0b1, 0b10], [0b1000, 0]]
    assert stored["0.compressed"].tolist() == [1, 10, 14] and stored["0.shape"].tolist() == [2, 10]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    sparsity = config["sparsity_config"]
    assert (sparsity["format"], sparsity["targets"], sparsity["global_sparsity"]) == ("sparse-bitmask", ["0"], 0.85)
    assert size == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_a_weight_of_another_name_is_stored_dense_and_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    sparsify.convert(model)
    sparsify.set_masks(model, {name: torch.rand(m.shape) < 0.5 for name, m in sparsify.get_masks(model).items()})
    written = write(model, tmp_path / "out", "compressed-tensors", {}, {})
    assert written.notes[0] == "1 weight in sparse-bitmask"
    assert written.notes[1:] == ("  stored dense, since the format knows no such names: 0.in_proj_weight",)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(stored["0.in_proj_weight"], sparsify.fold(model)[0].in_proj_weight.detach().numpy())


def test_a_tensor_that_the_reader_would_take_for_a_part_is_refused(tmp_path: Path) -> None:
    model = network()
    model["conv"].register_buffer("shape", torch.zeros(2))
    with pytest.raises(SparsifyError, match="^save: compressed-tensors would take the tensor conv.shape for [^\n]*$"):
        sparsify.save(model, tmp_path / "out", format="compressed-tensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compressed_tensors_itself_reads_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors")
    model = network(dtype)
    sparsify.save(model, tmp_path / "out", format="compressed-tensors")
    reader = library.compressors.BitmaskCompressor(config=library.config.BitmaskConfig())
    found: dict[str, Tensor] = dict(reader.decompress(str(tmp_path / "out")))
    folded = sparsify.fold(model).state_dict()
    assert found.keys() == folded.keys()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, wanted in folded.items():
        integer = bits[wanted.element_size()]
        assert found[name].dtype == wanted.dtype and torch.equal(found[name].view(integer), wanted.view(integer))
