"""Sparse files of compressed-tensors, made by hand in both styles of names, become dense ones, or one line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.import_weights import import_weights
from tests.random_masks import randomly_masked

Arrays = dict[str, np.ndarray[Any, Any]]
DENSE = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0, -2], [0, 0, 0, 4, 0, 0, 0, 0, 0, 0]], np.float32)
TWO_OF_FOUR = np.array([[0, 1, 0, 2, 3, 0, 4, 0], [5, 0, 0, 0, 0, 0, 6, 7]], np.float16)


def bitmask(layer: str = "fc.") -> Arrays:
    return {
        f"{layer}shape": np.array([2, 10]),
        f"{layer}compressed": np.array([1, -2, 4], np.float32),
        f"{layer}bitmask": np.array([[0b1, 0b10], [0b1000, 0]], np.uint8),
        f"{layer}row_offsets": np.array([0, 2]),
    }


def two_of_four(layer: str = "down.") -> Arrays:
    return {
        f"{layer}shape": np.array([[2], [8]]),
        f"{layer}compressed": np.array([[1, 2, 3, 4], [5, 0, 6, 7]], np.float16),
        f"{layer}bitmask": np.array([[0b01011010], [0b11000011]], np.uint8),
    }


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomly_masked(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)), 0.3)


REST: Arrays = {"fc.bias": np.array([0.5, -0.0], np.float32), "steps": np.array(7)}


@pytest.mark.parametrize("style", ["fc.", "fc.weight."], ids=["now", "before 0.9.0"])
@pytest.mark.parametrize("offsets", [True, False])
def test_a_bitmask_file_becomes_dense(style: str, offsets: bool, tmp_path: Path) -> None:
    given = bitmask(style)
    if not offsets:
        del given[f"{style}row_offsets"]
    save_file({**given, **REST}, tmp_path / "a")
    done = import_weights(tmp_path / "a", tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert found.keys() == {"fc.weight", *REST}
    assert np.array_equal(found["fc.weight"], DENSE) and found["fc.weight"].dtype == np.float32
    assert all(found[name].tobytes() == value.tobytes() for name, value in REST.items())
    assert done.size == (tmp_path / "out").stat().st_size
    assert (done.weights, done.zeros, done.entries) == (("fc.weight",), 17, 20)


@pytest.mark.parametrize("style", ["down.", "down.weight."], ids=["now", "before 0.9.0"])
def test_a_two_of_four_file_becomes_dense(style: str, tmp_path: Path) -> None:
    save_file(two_of_four(style), tmp_path / "a")
    done = import_weights(tmp_path / "a", tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert list(found) == ["down.weight"] and found["down.weight"].tobytes() == TWO_OF_FOUR.tobytes()
    assert (done.zeros, done.entries) == (8, 16)


def sharded(folder: Path, shards: Mapping[str, Arrays]) -> None:
    folder.mkdir()
    for file, arrays in shards.items():
        save_file(arrays, folder / file)
    where = {name: file for file, arrays in shards.items() for name in arrays}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards_become_one_file_even_where_a_weight_is_spread_over_them(tmp_path: Path) -> None:
    pieces = list(bitmask().items())
    shards = {"a.safetensors": dict(pieces[:2]), "b.safetensors": {**dict(pieces[2:]), **two_of_four(), **REST}}
    sharded(tmp_path / "in", shards)
    import_weights(tmp_path / "in", tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert found.keys() == {"fc.weight", "down.weight", *REST}
    assert np.array_equal(found["fc.weight"], DENSE) and np.array_equal(found["down.weight"], TWO_OF_FOUR)


def test_a_folder_with_one_file_and_the_library_s_own_export_are_read(tmp_path: Path) -> None:
    model = network()
    sparsify.save(model, tmp_path / "in", format="compressed-tensors")
    import_weights(tmp_path / "in", tmp_path / "out")
    sparsify.save(model, tmp_path / "dense", format="dense")
    found, wanted = load_file(tmp_path / "out"), load_file(tmp_path / "dense")
    assert found.keys() == wanted.keys() and all(found[key].tobytes() == wanted[key].tobytes() for key in found)


def test_a_scalar_s_last_dimension_of_zero_and_an_empty_weight_are_read(tmp_path: Path) -> None:
    empty = {"a.shape": np.array([3, 0]), "a.compressed": np.zeros(0, np.float32), "a.bitmask": np.zeros((3, 0), "u1")}
    save_file(empty, tmp_path / "in")
    import_weights(tmp_path / "in", tmp_path / "out")
    assert load_file(tmp_path / "out")["a.weight"].shape == (3, 0)


def changed(**arrays: np.ndarray[Any, Any] | None) -> Arrays:
    given: dict[str, Any] = bitmask() | {f"fc.{name}": value for name, value in arrays.items()}
    return {name: value for name, value in given.items() if value is not None}


U8, I64 = np.uint8, np.int64
INCONSISTENT: dict[str, tuple[Arrays, str]] = {
    "no bitmask": (changed(bitmask=None), "fc.weight is incomplete: its bitmask cannot be found"),
    "no shape": (changed(shape=None), "fc.weight is incomplete: its shape"),
    "too few values": (changed(compressed=np.ones(2, np.float32)), "keeps 3 entries, 2 are stored"),
    "too many values": (changed(compressed=np.ones(4, np.float32)), "keeps 3 entries, 4 are stored"),
    "far too many values": (changed(compressed=np.ones(21, np.float32)), "more values are stored"),
    "bits beyond a row": (changed(bitmask=np.array([[1, 2], [0, 4]], U8)), "keeps 2 entries"),
    "another shape": (changed(shape=np.array([2, 20])), "its bitmask is of another shape"),
    "a huge shape": (changed(shape=np.array([2**40, 10])), "its bitmask is of another shape"),
    "a negative shape": (changed(shape=np.array([-2, 10])), "is not a weight's shape"),
    "an overflowing shape": (changed(shape=np.array([2**62, 2**62])), "is not a weight's shape"),
    "an empty shape": (changed(shape=np.zeros(0, I64)), "is not a weight's shape"),
    "a shape of floats": (changed(shape=np.array([2.0, 10.0])), "is not a weight's shape"),
    "a bitmask of floats": (changed(bitmask=np.zeros((2, 2))), "its bitmask is of another shape"),
    "twice": (bitmask("fc.") | bitmask("fc.weight."), "fc.weight is there twice"),
    "dense and compressed": (bitmask() | {"fc.weight": DENSE}, "fc.weight is there twice"),
    "quantised": (bitmask() | {"fc.weight_scale": DENSE}, "quantised as well (fc.weight_scale)"),
    "dense": ({"fc.weight": DENSE}, "nothing in it is compressed"),
}


def refused(source: Path, out: Path) -> str:
    with pytest.raises(SparsifyError) as caught:
        import_weights(source, out)
    assert "\n" not in str(caught.value) and not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", INCONSISTENT)
def test_what_does_not_fit_is_one_line(name: str, tmp_path: Path) -> None:
    arrays, expected = INCONSISTENT[name]
    save_file(arrays, tmp_path / "a")
    assert expected in refused(tmp_path / "a", tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_truncated_file_is_one_line_wherever_it_ends(tmp_path: Path) -> None:
    save_file({**bitmask(), **REST}, tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:length])
        assert "truncated" in (said := refused(tmp_path / "a", tmp_path / "out")) or "not a safetensors file" in said


def _index(content: object) -> Callable[[Path], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: None, "a folder with no safetensors file"),
    "two files": (
        lambda folder: [(folder / f"{name}.safetensors").write_bytes(b"") for name in "ab"],
        "2 safetensors files and no model.safetensors.index.json",
    ),
    "no JSON": (_index("{"), "not an index"),
    "nested JSON": (_index("[" * 100_000), "not an index"),
    "a list": (_index([1]), "not an index"),
    "a map of lists": (_index({"weight_map": {"a": ["b"]}}), "not an index"),
    "an empty map": (_index({"weight_map": {}}), "no file"),
    "a missing shard": (_index({"weight_map": {"a": "a.safetensors"}}), "a.safetensors of its 1 files is missing"),
    "outside": (_index({"weight_map": {"a": "../a.safetensors"}}), "no safetensors file beside it"),
    "absolute": (_index({"weight_map": {"a": "/etc/passwd"}}), "no safetensors file beside it"),
    "number": (_index({"weight_map": {"a": 1}}), "no safetensors file beside it"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_none_of_theirs_is_one_line(name: str, tmp_path: Path) -> None:
    make, expected = FOLDERS[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    assert expected in refused(tmp_path / "in", tmp_path / "out")


def test_a_tensor_in_two_shards_is_one_line(tmp_path: Path) -> None:
    sharded(tmp_path / "in", {"a.safetensors": bitmask(), "b.safetensors": bitmask()})
    where = {"fc.shape": "a.safetensors", "fc.bitmask": "b.safetensors"}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert "is in two of its files" in refused(tmp_path / "in", tmp_path / "out")


def test_our_own_sparse_file_is_sent_the_other_way_and_an_altered_export_refused(tmp_path: Path) -> None:
    sparsify.save(network(), tmp_path / "own")
    assert "sparsify export" in refused(tmp_path / "own", tmp_path / "out")
    sparsify.save(network(), tmp_path / "in", format="compressed-tensors")
    file = tmp_path / "in" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "does not agree with its checksum" in refused(tmp_path / "in", tmp_path / "out")
    content[20] ^= 1
    file.write_bytes(content)
    assert "altered" in refused(tmp_path / "in", tmp_path / "out")


def test_a_place_that_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    assert "cannot write" in refused(tmp_path / "missing", tmp_path / "nowhere" / "out")
    assert "cannot read" in refused(tmp_path / "missing", tmp_path / "out")
    (photo := tmp_path / "photo.png").write_bytes(b"\x89PNG and pixels")
    with pytest.raises(SparsifyError, match="it exists and is no safetensors file"):
        import_weights(tmp_path / "missing", photo)
