"""Files made to do harm: a small one takes neither much memory nor time, and nothing is fetched or executed."""

import json
import os
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsify
from sparsify.errors import SparsifyError
from tests.formats.file.test_damage import rewritten


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a small network of a zoo."""
    model = sparsify.build_model("cifar:resnet20", num_classes=10)
    sparsify.convert(model)
    path = tmp_path_factory.mktemp("base") / "model"
    sparsify.save(model, path, spec="cifar:resnet20", arguments={"num_classes": 10})
    return path.read_bytes()


@pytest.fixture(scope="module")
def kept(base: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on the disk: an example of hypothesis shows its arguments."""
    path = tmp_path_factory.mktemp("kept") / "model"
    path.write_bytes(base)
    return path


def naming(base: bytes, spec: str, arguments: dict[str, Any]) -> bytes:
    """Return the file with another model named in it."""

    def change(header: dict[str, Any]) -> None:
        header["__metadata__"] |= {"spec": spec, "arguments": json.dumps(arguments)}

    return rewritten(base, change)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(SparsifyError) as caught:
            sparsify.load(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ") and caught.value.exit_code == 2
    return line


VIT = "timm:vit_base_patch16_224"
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "14 GB of weights": (VIT, {"embed_dim": 60_000, "num_heads": 1, "depth": 1}),
    "a table of positions": (VIT, {"img_size": 160_000, "depth": 1}),
    "a table within windows": ("timm:swin_tiny_patch4_window7_224", {"window_size": 20_000, "img_size": 224_000}),
    "many layers": (VIT, {"depth": 5000, "embed_dim": 1, "num_heads": 1}),
    "torchvision": ("torchvision:vit_b_16", {"image_size": 960_000}),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_file_that_names_a_far_larger_model_is_refused_before_it_is_made(
    name: str, base: bytes, tmp_path: Path
) -> None:
    assert "is far larger than the file" in refused(tmp_path / "a", naming(base, *LARGE[name]))


def test_a_file_that_names_another_model_is_refused_before_it_is_made(
    base: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsify.formats.model import build

    devices = []

    def spied(*given: Any, **arguments: Any) -> Any:
        devices.append(torch.get_default_device().type)
        return sparsify.build_model(*given, **arguments)

    monkeypatch.setattr(build, "build_model", spied)
    assert "do not fit the model" in refused(tmp_path / "a", naming(base, "cifar:resnet20", {"num_classes": 11}))
    assert devices == ["meta"]
    (tmp_path / "a").write_bytes(base)
    sparsify.load(tmp_path / "a")
    assert devices == ["meta", "meta", "cpu"]


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("torchvision:fcn_resnet50", {"pretrained_backbone": True}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"checkpoint_path": "/etc/passwd"}),
        ("timm:resnet18", {"model_name": "resnet34"}),
        ("cifar:resnet20", {"name": "cifar:resnet32"}),
        ("cifar:resnet20", {"checkpoint": "a.pt"}),
    ],
)
def test_a_file_fetches_and_reads_nothing_else(
    spec: str, arguments: dict[str, Any], base: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", called)
    line = refused(tmp_path / "a", naming(base, spec, arguments))
    assert f"the file's model arguments may not contain {next(iter(arguments))}" in line


def test_arguments_of_any_size_are_refused(base: bytes, tmp_path: Path) -> None:
    line = refused(tmp_path / "a", naming(base, VIT, {"depth": 90_000_000, "embed_dim": 1}))
    assert "model argument depth is beyond 1,000,000" in line


_ARGUMENTS = st.dictionaries(
    st.sampled_from(["num_classes", "in_channels", "width", "widths", "name", "x", "depth", "pretrained"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), st.lists
    ),
    max_size=3,
)


@settings(max_examples=40)
@given(arguments=_ARGUMENTS, spec=st.sampled_from(["cifar:resnet20", "cifar:x", "timm:hf-hub:a/b", "x", "timm:"]))
def test_any_arguments_are_a_model_or_one_line(kept: Path, spec: str, arguments: dict[str, Any]) -> None:
    path = kept.with_name("any")
    path.write_bytes(naming(kept.read_bytes(), spec, arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of layers without entries
            sparsify.load(path)
    except SparsifyError as error:
        assert "\n" not in str(error)


def test_a_header_of_very_many_tensors_is_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{index}": entry for index in range(200_001)}, separators=(",", ":")).encode()
    assert "more than 200,000 tensors" in refused(tmp_path / "a", len(text).to_bytes(8, "little") + text)
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(SparsifyError, match="more than 200,000 tensors"):
        sparsify.build_model("cifar:resnet20", checkpoint=tmp_path / "a.safetensors")
    text = b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"
    assert "its header is no model's" in refused(tmp_path / "a", len(text).to_bytes(8, "little") + text)


def test_a_cut_that_makes_an_attribute_larger_is_refused(tmp_path: Path) -> None:
    from sparsify.surgery.shrink.cuts import Cuts, apply_cuts

    model = sparsify.build_model("cifar:resnet20", num_classes=10)
    name = next(name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d))
    apply_cuts(model, Cuts({}, {f"{name}.padding": (0, 0)}))
    sparsify.save(model, tmp_path / "a", spec="cifar:resnet20", arguments={"num_classes": 10})
    assert model.get_submodule(name).padding == sparsify.load(tmp_path / "a").get_submodule(name).padding == (0, 0)
    content = (tmp_path / "a").read_bytes()

    def wide(header: dict[str, Any]) -> None:
        cuts = json.loads(header["__metadata__"]["cuts"])
        cuts["attributes"][f"{name}.padding"] = [10**8, 10**8]
        header["__metadata__"]["cuts"] = json.dumps(cuts)

    line = refused(tmp_path / "b", rewritten(content, wide))
    assert "the model cannot be cut as the file's was: Conv2d.padding would become larger" in line


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.zeros(20_000_000, dtype=torch.uint8)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert packed.stat().st_size < 100_000
    with pytest.raises(SparsifyError, match=r"refused: a compressed archive of 20,000,\d+ bytes") as caught:
        sparsify.build_model("cifar:resnet20", checkpoint=packed)
    assert "\n" not in str(caught.value)


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_never_executed(tmp_path: Path, legacy: bool) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "executed"
    if legacy:
        path.write_bytes(pickle.dumps({"a": _Harm(mark)}))
    else:
        torch.save({"a": _Harm(mark)}, path)
    with pytest.raises(SparsifyError, match="which could run code"):
        sparsify.build_model("cifar:resnet20", checkpoint=path)
    assert not mark.exists()
