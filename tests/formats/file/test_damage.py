"""A truncated, altered, foreign or hostile file is one clear line, before anything large is allocated."""

import json
import re
import shlex
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.export.save import inspect_file, load, read_state, save
from sparsify.formats.codec.weight_encodings import ENCODINGS
from tests.formats.toys import every_encoding, holder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with every encoding, plain tensors and metadata."""
    path = tmp_path_factory.mktemp("whole") / "model"
    model = every_encoding()
    save(model, path, spec="timm:x", recipe="a: 1\n", seeds={"train": 1})
    assert {row.encoding for row in inspect_file(path).rows} == {*ENCODINGS, "plain"}
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    """Return the one line with which `content` is refused."""
    path.write_bytes(content)
    with pytest.raises(SparsifyError) as caught:
        read_state(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    assert caught.value.exit_code == 2
    return line


def refused_in_little_memory(path: Path, content: bytes, most: int) -> str:
    """Return the line of `refused`, which may take `most` bytes and eight times the content."""
    tracemalloc.start()
    line = refused(path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most + 8 * len(content)
    return line


def test_every_flipped_bit_is_noticed(whole: bytes, tmp_path: Path) -> None:
    start = 8 + int.from_bytes(whole[:8], "little")
    positions = {*range(16), *range(16, start, 7), *range(start, len(whole), 11), *range(len(whole) - 16, len(whole))}
    for position in positions:
        altered = bytearray(whole)
        altered[position] ^= 1 << (position % 8)
        refused(tmp_path / "a", bytes(altered))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[position]))
    refused(tmp_path_factory.getbasetemp() / "altered", bytes(altered))


def test_a_file_cut_short_or_continued_anywhere_is_noticed(whole: bytes, tmp_path: Path) -> None:
    for length in [*range(12), *range(12, len(whole), 41), len(whole) - 1]:
        refused(tmp_path / "a", whole[:length])
    assert "truncated" in refused(tmp_path / "a", whole[:-1])
    assert "truncated" in refused(tmp_path / "a", whole[:100])
    assert "altered" in refused(tmp_path / "a", whole + b"\0")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + bytes(500),
        b"\x80\x02}q\x00." * 40,
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (20_000).to_bytes(8, "little") + b'{"__metadata__":{},"a":' + b"9" * (20_000 - 24) + b"}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        b"just some text that somebody saved under this name",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "not a safetensors file" in refused(tmp_path / "a", content)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("my net.pt", "; if torch saved it: sparsify convert {quoted} --model SPEC --out FILE.safetensors"),
        ("net.CKPT", "; if torch saved it: sparsify convert {quoted} --model SPEC --out FILE.safetensors"),
        ("net.onnx", "; take the run or the file that it was exported from"),
        ("net", ""),
    ],
)
def test_a_file_of_another_kind_is_answered_with_the_way_on(tmp_path: Path, name: str, hint: str) -> None:
    path = tmp_path / name
    said = refused(path, b"PK\x03\x04" + bytes(100))
    assert said == f"{path}: not a safetensors file{hint.format(quoted=shlex.quote(str(path)))}"


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match=rf"^cannot read {tmp_path}/none: No such file or directory$"):
        load(tmp_path / "none", nn.Linear(1, 1))
    with pytest.raises(SparsifyError, match=rf"^cannot read {tmp_path}: Is a directory$"):
        inspect_file(tmp_path)


def rewritten(whole: bytes, change: Callable[[dict[str, Any]], None], *, seal: bool = True) -> bytes:
    """Return the file with its header changed by a liar who also mends the header's checksum."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    header["__metadata__"]["header_crc32"] = "00000000"
    text = json.dumps(header, separators=(",", ":")).encode()
    if seal:
        text = text.replace(b'"header_crc32":"00000000"', b'"header_crc32":"%08x"' % zlib.crc32(text))
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def change_table(key: str, change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        table = json.loads(header["__metadata__"].get(key, "{}"))
        change(table)
        header["__metadata__"][key] = json.dumps(table)

    return apply


def test_the_liar_is_believed_when_nothing_is_changed(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(rewritten(whole, lambda header: None))
    assert len(read_state(tmp_path / "a").masks) == 8
    assert "checksum" in refused(tmp_path / "a", rewritten(whole, lambda header: None, seal=False))


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return apply


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a newer version": (
        _set("__metadata__", "version", value="4"),
        "format version '4'; this sparsify reads versions 1, 2 and 3",
    ),
    "an unknown encoding": (change_table("masked", _set("4.weight", "encoding", value="rice")), "no known encoding"),
    "an encoding that is a list": (change_table("masked", _set("4.weight", "encoding", value=[])), "no known encoding"),
    "a shape too large for the mask": (
        change_table("masked", _set("4.weight", "shape", value=[2**30, 2**29])),
        "does not fit a weight of shape",
    ),
    "a truth value that is a number": (change_table("masked", _set("4.weight", "also", value=1)), "neither true"),
    "a shape beyond all numbers": (change_table("masked", _set("4.weight", "shape", value=[2**62, 0])), "shape"),
    "a shape that is smaller": (change_table("masked", _set("4.weight", "shape", value=[8, 4, 3])), "does not fit"),
    "a shape with a negative size": (change_table("masked", _set("4.weight", "shape", value=[-8, -36])), "shape"),
    "a shape of truth values": (change_table("masked", _set("4.weight", "shape", value=[True])), "shape"),
    "another rank for whole values": (change_table("masked", _set("1.weight", "shape", value=[16])), "does not fit"),
    "a weight without parts": (change_table("masked", _set("x", value={"encoding": "raw", "shape": [1]})), "missing"),
    "a masked table of another kind": (_set("__metadata__", "masked", value="[]"), "not a JSON object"),
    "a masked table that is no JSON": (_set("__metadata__", "masked", value="{"), "altered"),
    "an alias to nothing": (change_table("aliases", _set("b", value="a")), "alias"),
    "an alias to no name": (change_table("aliases", _set("b", value=[])), "alias"),
    "an alias of an alias": (change_table("aliases", lambda t: t.update(b="4.weight", c="b")), "alias"),
    "an alias that is stored": (change_table("aliases", _set("3.bias", value="3.weight")), "alias"),
    "no version": (lambda header: header["__metadata__"].pop("version"), "no version"),
    "too few checksums": (_set("__metadata__", "crc32", value="00000000"), "one checksum for each"),
    "no checksums": (lambda header: header["__metadata__"].pop("crc32"), "one checksum for each"),
    "wrong checksums": (_set("__metadata__", "crc32", value=" ".join(["00000000"] * 20)), "checksum"),
    "overlapping tensors": (_set("3.bias", "data_offsets", value=[8, 20]), "starts at"),
    "a tensor beyond the end": (_set("3.bias", "data_offsets", value=[2**40, 2**40 + 12]), "starts at"),
    "a tensor of a huge shape": (_set("3.bias", "shape", value=[2**50, 2**50]), "shape"),
    "a tensor of another shape": (_set("3.bias", "shape", value=[4]), "its shape asks for"),
    "offsets backwards": (_set("3.bias", "data_offsets", value=[12, 0]), "its shape asks for"),
    "three offsets": (_set("3.bias", "data_offsets", value=[0, 1, 2]), "no valid shape and offsets"),
    "an unknown type": (_set("3.bias", "dtype", value="F31"), "unknown dtype"),
    "a type that is a list": (_set("3.bias", "dtype", value=["F32"]), "unknown dtype"),
    "a description that is a list": (_set("3.bias", value=[]), "not described"),
    "metadata that are numbers": (_set("__metadata__", "version", value=1), "not text"),
    "a mask of another type": (_set("4.weight.mask", "dtype", value="I8"), "does not fit"),
    "a name with a line break": (_set("a\nb", value=1), "not described"),
    "an encoding of a later version": (_set("__metadata__", "version", value="1"), "one that version 1 does not know"),
    "another encoding": (change_table("masked", _set("0.weight", "encoding", value="bitmask")), "is missing"),
    "more values than entries": (change_table("masked", _set("0.weight", "shape", value=[8])), "does not fit"),
    "a few gaps for a huge shape": (change_table("masked", _set("0.weight", "shape", value=[2**40])), "too little"),
    "a few gaps for a large shape": (change_table("masked", _set("0.weight", "shape", value=[2**19])), "do not add up"),
    "gaps for another shape": (change_table("masked", _set("0.weight", "shape", value=[8, 4, 3, 4])), "do not add up"),
    "gaps of another type": (_set("0.weight.gaps", "dtype", value="I8"), "does not fit"),
    "gaps of another rank": (
        lambda header: header["0.weight.gaps"].update(shape=[*header["0.weight.gaps"]["shape"], 1]),
        "does not fit",
    ),
    "all of a larger weight": (change_table("masked", _set("1.weight", "shape", value=[4, 5])), "does not fit"),
    "groups for another shape": (change_table("masked", _set("6.weight", "shape", value=[12, 25])), "is not 2:4"),
    "groups of a scalar": (change_table("masked", _set("6.weight", "shape", value=[2**9])), "is not 2:4"),
    "units of a huge shape": (change_table("masked", _set("7.weight", "shape", value=[20, 30, 2**40])), "too little"),
    "units of a large shape": (change_table("masked", _set("7.weight", "shape", value=[20, 30, 2**9])), "keeps all of"),
    "more units": (change_table("masked", _set("7.weight", "shape", value=[30, 30, 3])), "of an unknown codec"),
    "fewer units": (change_table("masked", _set("7.weight", "shape", value=[16, 30, 3])), "of an unknown codec"),
    "units of a scalar": (change_table("masked", _set("7.weight", "shape", value=[])), "does not fit"),
    "units without values": (change_table("masked", _set("7.weight", "shape", value=[0, 30, 3])), "does not fit"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(whole: bytes, tmp_path: Path, lie: str) -> None:
    change, message = LIES[lie]
    assert message in refused_in_little_memory(tmp_path / "a", rewritten(whole, change), 2**21)


def test_a_repeated_name_is_refused(tmp_path: Path) -> None:
    entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    text = b'{"__metadata__":{},' + entry + b"," + entry + b"}"
    assert "occurs twice" in refused(tmp_path / "a", len(text).to_bytes(8, "little") + text + b"\0")


def forged(path: Path, tensors: dict[str, np.ndarray[Any, Any]], masked: dict[str, Any]) -> bytes:
    """Return a sparsify file with these stored tensors and good checksums."""
    sums = " ".join(f"{zlib.crc32(tensors[name].tobytes()):08x}" for name in sorted(tensors))
    meta = {"format": "sparsify", "version": "1", "masked": json.dumps(masked), "crc32": sums}
    save_file(tensors, path, metadata=meta)
    return rewritten(path.read_bytes(), lambda header: None)


def test_counts_and_masks_that_disagree_are_refused_even_with_good_checksums(tmp_path: Path) -> None:
    ones, path = np.ones(3, np.float32), tmp_path / "a"
    sparse = {"w": {"encoding": "bitmask", "shape": [5]}}
    dense = {"w": {"encoding": "whole", "shape": [3]}}

    def mask(*bits: int) -> np.ndarray[Any, Any]:
        return np.array([sum(1 << bit for bit in bits)], np.uint8)

    path.write_bytes(forged(path, {"w.kept": ones, "w.mask": mask(0, 2, 4)}, sparse))
    assert read_state(path).state["w"].tolist() == [1, 0, 1, 0, 1]
    assert "keeps 2 entries, 3 are stored" in refused(
        path, forged(path, {"w.kept": ones, "w.mask": mask(0, 2)}, sparse)
    )
    with pytest.raises(SparsifyError, match="disagree"):
        inspect_file(path)
    message = "bits beyond its last entry"
    assert message in refused(path, forged(path, {"w.kept": ones, "w.mask": mask(0, 2, 5)}, sparse))
    assert message in refused(path, forged(path, {"w": ones, "w.mask": mask(0, 1, 2, 3)}, dense))
    message = "removes entries that are not zero"
    assert message in refused(path, forged(path, {"w": ones, "w.mask": mask(0, 2)}, dense))
    hidden = np.array([1, -0.0, 1], np.float32)
    assert message in refused(path, forged(path, {"w": hidden, "w.mask": mask(0, 2)}, dense))
    two = {"w": dense["w"], "w.mask": {"encoding": "whole", "shape": [1]}}
    tensors = {"w": ones, "w.mask": mask(0, 1, 2), "w.mask.mask": mask(0)}
    assert "belongs to two weights" in refused(path, forged(path, tensors, two))
    assert "neither 0 nor 1" in refused(path, _with_bool_of_two(path))


def _with_bool_of_two(path: Path) -> bytes:
    content = forged(path, {"flag": np.array([2], np.uint8)}, {})
    return rewritten(content, _set("flag", "dtype", value="BOOL"))


def test_a_file_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(nn.Sequential(holder((9, 9)), nn.Linear(3, 3)), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    model = nn.Sequential(holder((9, 9), seed=1), nn.Linear(3, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SparsifyError, match=re.escape("'0.weight.mask' does not agree with its checksum")):
        load(path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
