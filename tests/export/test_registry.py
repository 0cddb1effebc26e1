"""Every way out, by one contract; what is particular to a format is tested beside it."""

import errno
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.import_weights import import_weights
from sparsify.export.registry import FORMATS, Format, check_place, format_of
from sparsify.formats.io.atomic import atomic_write
from sparsify.formats.request import ExportRequest, ExportResult
from tests.formats.toys import network
from tests.random_masks import randomly_masked


class Net(nn.Module):
    """A convolution, a norm, a linear layer, and a weight by another name than `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Parameter(torch.randn(16, 16) / 4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x))).mean((2, 3))
        return self.head(F.relu(F.linear(x, self.mix)))


@pytest.fixture
def masked() -> nn.Module:
    """Return a converted model in training mode, whose norm has seen some data."""
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 16, 16))
    return randomly_masked(model, 0.3)


def _filled(state: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    model = Net()
    model.load_state_dict(state, strict=True)
    return model.eval()


def _in_onnx_runtime(path: Path) -> Callable[[Tensor], Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda x: torch.as_tensor(session.run(None, {"x": x.numpy()})[0])


def _imported(path: Path) -> Callable[[Tensor], Tensor]:
    import_weights(path, path / "dense")
    return _filled(load_file(path / "dense"))


# format -> path -> what runs the model that was written, without the masked one.
READERS: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "sparse": lambda path: sparsify.load(path, Net()).eval(),
    "engine": lambda path: sparsify.compile(path, model=Net()),
    "dense": lambda path: _filled(load_file(path)),
    "onnx": _in_onnx_runtime,
    "pt2": lambda path: torch.export.load(path).module(),
    "compressed-tensors": _imported,
    "hub": lambda path: sparsify.load(path, Net()).eval(),
}


def options(format: str) -> dict[str, Any]:
    if FORMATS[format].needs:
        for name in FORMATS[format].needs:
            pytest.importorskip(name)
    return {"example_input": torch.randn(1, 3, 16, 16)} if "example_input" in FORMATS[format].takes else {}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_outputs(
    format: str, read: Callable[[Path], Callable[[Tensor], Tensor]], masked: nn.Module, path: Path
) -> None:
    """What is written is all there is, leaves the model alone, and gives the masked model's outputs."""
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    size = sparsify.save(masked, path / "out", format=format, **options(format))
    assert size == sum(map(len, tree(path).values())) and len(list(path.iterdir())) == 1
    assert (path / "out").is_dir() == FORMATS[format].folder
    assert masked.training and all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    run = read(path / "out")
    masked.eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            wanted, found = masked(x), run(x)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def check_place_refused(format: str, masked: nn.Module, path: Path, patch: pytest.MonkeyPatch) -> None:
    """A place that cannot be written is refused before the model is run."""
    given = options(format)
    with patch.context() as one:
        one.setattr(Net, "forward", None)
        with pytest.raises(SparsifyError, match="^cannot write [^\n]*nowhere"):
            sparsify.save(masked, path / "nowhere" / "out", format=format, **given)


def check_nothing_lost(format: str, masked: nn.Module, path: Path, patch: pytest.MonkeyPatch) -> None:
    """A full disk leaves what was there, and nothing else."""
    if not FORMATS[format].folder:
        (path / "out").write_bytes(b"old")
    before = tree(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    given = options(format)
    with patch.context() as one:
        one.setattr(os, "fsync", full)
        with pytest.raises(SparsifyError, match="^cannot write [^\n]* no space left [^\n]*$"):
            sparsify.save(masked, path / "out", format=format, **given)
    assert tree(path) == before and len(list(path.iterdir())) == len(before)


def check_row(format: str, path: Path) -> None:
    """A row has one sentence of help, a suffix unless it is a folder's, and refuses options that it does not take."""
    row = FORMATS[format]
    assert row.help.endswith(".") and row.help.count(". ") == 0
    assert bool(row.suffix) != row.folder and format_of(f"x{row.suffix}", format, where="here") == format
    every = {"dtype": "float16", "batch_size": 2, "example_input": torch.zeros(1), "threads": 1, "dynamic_shapes": {}}
    for option, value in every.items():
        if option not in row.takes:
            with pytest.raises(SparsifyError, match=f"^save: {format} takes no {option} [^\n]*$"):
                sparsify.save(network(), path / "x", format=format, **{option: value})
    assert not list(path.iterdir())


@pytest.mark.parametrize("format", READERS)
def test_what_is_written_gives_the_masked_models_outputs(format: str, masked: nn.Module, tmp_path: Path) -> None:
    check_outputs(format, READERS[format], masked, tmp_path)


def test_every_way_out_has_a_reader_here() -> None:
    assert READERS.keys() == FORMATS.keys() - {"masks"}  # which hold no weights


@pytest.mark.parametrize("format", FORMATS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    format: str, masked: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place_refused(format, masked, tmp_path, monkeypatch)


@pytest.mark.parametrize("format", FORMATS)
def test_a_write_that_fails_leaves_nothing_and_what_was_there(
    format: str, masked: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_nothing_lost(format, masked, tmp_path, monkeypatch)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_says_what_its_format_is_and_takes(format: str, tmp_path: Path) -> None:
    check_row(format, tmp_path)


def _write_arrays(request: ExportRequest) -> ExportResult:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in sparsify.fold(request.model).state_dict().items()})
    return ExportResult(atomic_write(request.path, buffer.getvalue()))


def test_a_format_is_one_function_and_one_row(
    masked: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "npz", Format(_write_arrays, "NumPy arrays in an archive.", suffix=".npz"))
    assert format_of("x.npz", None, where="here") == "npz"
    for check in ("outputs", "place", "lost", "row"):
        (tmp_path / check).mkdir()
    check_row("npz", tmp_path / "row")
    check_place_refused("npz", masked, tmp_path / "place", monkeypatch)
    check_nothing_lost("npz", masked, tmp_path / "lost", monkeypatch)

    def read(path: Path) -> Callable[[Tensor], Tensor]:
        with np.load(path) as arrays:
            return _filled({name: torch.as_tensor(arrays[name]) for name in arrays})

    check_outputs("npz", read, masked, tmp_path / "outputs")


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="^save: unknown format 'spares'[^\n]*'sparse'[^\n]*$"):
        sparsify.save(network(), tmp_path / "x", format="spares")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from sparsify.formats.io.atomic_folder import atomic_folder

    for name in ("new", "empty"):
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").write_text(name)
            assert not (tmp_path / "new" / "a").exists()
        assert tree(tmp_path) == {"new/a": name.encode()}
        (tmp_path / "new" / "a").unlink()
    with pytest.raises(OSError), atomic_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == ["new"] and not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("where", ["full", "file", "nowhere/new"])
def test_a_folder_is_not_written_over_another_or_nowhere(where: str, tmp_path: Path) -> None:
    from sparsify.formats.io.atomic_folder import atomic_folder

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("1")
    (tmp_path / "file").write_text("2")
    with pytest.raises(SparsifyError, match="^cannot write [^\n]*$"), atomic_folder(tmp_path / where):
        raise AssertionError("the block is not reached")
    assert tree(tmp_path) == {"full/precious": b"1", "file": b"2"}


def test_only_a_format_that_replaces_folders_says_which(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("1")
    for name, ending in (("hub", "would be replaced\\)"), ("compressed-tensors", "is not empty")):
        with pytest.raises(SparsifyError, match=f"the folder exists and .*{ending}$"):
            check_place(FORMATS[name], tmp_path)


@pytest.mark.parametrize(("path", "guess"), [("a.onxx", ".onnx"), ("a.PT", ".pt2"), ("a.safetensor", ".safetensors")])
def test_a_suffix_that_is_nearly_a_formats_is_no_sparse_file(path: str, guess: str) -> None:
    with pytest.raises(SparsifyError, match=rf"here: --out {path}: no format writes .*; did you mean '{guess}'"):
        format_of(path, None, where="here")
    assert format_of(path, "sparse", where="here") == "sparse"
    assert format_of("a.bin", None, where="here") == format_of("a", None, where="here") == "sparse"


def test_a_format_replaces_no_file_of_another_kind(masked: nn.Module, tmp_path: Path) -> None:
    photo, older, fresh = (tmp_path / name for name in ("photo.png", "older.bin", "fresh.tmp"))
    photo.write_bytes(b"\x89PNG\r\n\x1a\n and pixels")
    with pytest.raises(SparsifyError, match=r"^cannot write .*photo\.png: it exists and is no safetensors file"):
        sparsify.save(masked, photo)
    for name in ("onnx", "pt2"):
        with pytest.raises(SparsifyError, match=rf"photo\.png: it exists and is no {name} file; choose another name"):
            check_place(FORMATS[name], photo)
        check_place(FORMATS[name], tmp_path / "new.png")
    assert photo.read_bytes() == b"\x89PNG\r\n\x1a\n and pixels"
    fresh.touch()
    for path in (older, older, fresh):
        assert sparsify.save(masked, path) == path.stat().st_size
