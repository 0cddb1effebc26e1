"""`sparsify export --format ...` and `sparsify import`, by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sparsify as library
from sparsify.export.registry import FORMATS
from tests.cli.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("format", FORMATS)
def test_export_writes_every_format_and_says_what_it_costs(
    format: str, sparsify: Run, pruned: Path, tmp_path: Path
) -> None:
    for name in FORMATS[format].needs:
        pytest.importorskip(name)
    code, out, err = sparsify("export", pruned, "--format", format, "--out", tmp_path / "out")
    assert (code, err) == (0, "") and "% of the dense 1.5 MB" in out.splitlines()[0]
    assert "checked" in out or format not in ("onnx", "pt2")


def test_shrink_first_works_with_a_program(sparsify: Run, tmp_path: Path) -> None:
    masked = library.build_model("timm:test_resnet", num_classes=10).eval()
    library.convert(masked)
    masks = {name: torch.ones_like(mask) for name, mask in library.get_masks(masked).items()}
    masks["layer4.0.conv1.weight"][1:] = False
    library.set_masks(masked, masks)
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}, "extra": {"input_shape": [3, 16, 16]}}
    library.save(masked, tmp_path / "m", **about)  # type: ignore[arg-type]
    code, out, _ = sparsify("export", tmp_path / "m", "--format", "pt2", "--shrink", "--out", tmp_path / "out")
    assert code == 0 and "channel groups are gone" in out
    kept = sum(value.numel() for value in torch.export.load(tmp_path / "out").state_dict.values())
    assert kept < 0.6 * sum(value.numel() for value in library.fold(masked).state_dict().values())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "out").module()(x), masked(x), atol=1e-5)


@pytest.mark.parametrize(
    ("format", "dead", "zeros"), [("dense", "", False), ("pt2", "", True), ("pt2", "masks", False)]
)
def test_what_is_zero_by_value_goes_where_training_is_over(
    sparsify: Run, tmp_path: Path, format: str, dead: str, zeros: bool
) -> None:
    model = library.build_model("timm:test_resnet", num_classes=10).eval()
    with torch.no_grad():
        model.get_parameter("layer4.0.bn1.weight").zero_()
        model.get_parameter("layer4.0.bn1.bias").zero_()
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}, "extra": {"input_shape": [3, 16, 16]}}
    library.save(model, tmp_path / "m", **about)  # type: ignore[arg-type]
    options = ["--dead", dead] if dead else []
    code, out, _ = sparsify(
        "export", tmp_path / "m", "--format", format, "--shrink", *options, "--out", tmp_path / "out"
    )
    assert code == 0 and ("channel groups are gone (0 pruned, " in out) == zeros
    assert ("no mask of this model removes anything" in out) == (not zeros)


def test_a_tuned_file_says_for_what_and_runs(sparsify: Run, pruned: Path, tmp_path: Path) -> None:
    args = ("export", pruned, "--format", "engine", "--batch-size", 2, "--threads", 1, "--out", tmp_path / "e")
    code, out, err = sparsify(*args)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("tuned for 2x3x32x32 on 1 thread of this machine: ")
    assert "tuned for an engine: inputs [[2, 3, 32, 32]], threads 1" in sparsify("inspect", tmp_path / "e").out
    x = torch.randn(2, 3, 32, 32)
    engine = library.compile(tmp_path / "e", threads=1)
    with torch.no_grad():
        wanted = library.load(pruned)(x)
    assert engine.strategies[((2, 3, 32, 32),)].why == "tuned when the file was written"
    assert (engine(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_file_that_does_not_say_its_input_is_one_line(sparsify: Run, tmp_path: Path) -> None:
    library.save(library.build_model("timm:test_resnet"), tmp_path / "m", spec="timm:test_resnet")
    code, out, err = sparsify("export", tmp_path / "m", "--format", "pt2", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "input_shape" in err and "example_input=" in err
    assert not (tmp_path / "out").exists()


def test_export_lists_the_formats_in_its_help(sparsify: Run) -> None:
    shown = sparsify("export", "--help").out.partition("Formats:")[2].split()
    for name, row in FORMATS.items():
        assert name in shown and row.help.replace(" ", "") in "".join(shown)  # a line may break at any hyphen


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [
        ("m.onnx", (), "onnx"),
        ("m.ONNX", (), "onnx"),
        ("m.pt2", (), "pt2"),
        ("m.safetensors", (), "sparse"),
        ("m", (), "sparse"),
        ("m.safetensors", ("--masks-only",), "masks"),
        ("m.safetensors", ("--format", "dense"), "dense"),
        ("m", ("--format", "onnx"), "onnx"),
        ("folder", (), "hub"),
        ("new/", (), "hub"),
        ("m.onnx", ("--format", "sparse"), ""),
        ("m.onnx", ("--format", "pt2"), ""),
        ("m.safetensors", ("--format", "onnx"), ""),
        ("m.pt2", ("--format", "hub"), ""),
        ("m.pt2", ("--masks-only",), ""),
    ],
)
def test_the_suffix_chooses_the_format_and_a_contradiction_is_one_line(
    name: str, options: tuple[str, ...], format: str, sparsify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    # What is written is another test's; here no model is loaded.
    code, _, err = sparsify("export", "nothing", "--out", name, *options, "--threads", 1)
    assert code == 2 and err.count("\n") == 1
    if format:
        assert f"export: {format} takes no --threads" in err
    else:
        assert f"export: --out {name} names a {Path(name).suffix} file, and " in err
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize(
    ("dims", "found"), [("0:batch,2:height, 3", "[batch, 3, height, size3]"), ("", "[1, 3, 64, 64]")]
)
def test_dimensions_that_may_vary(dims: str, found: str, sparsify: Run, pruned: Path, tmp_path: Path) -> None:
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}, "extra": {"input_shape": [3, 64, 64]}}
    library.save(library.load(pruned), tmp_path / "large", **about)  # type: ignore[arg-type]
    code, out, err = sparsify("export", tmp_path / "large", "--out", tmp_path / "m.pt2", "--dynamic", dims)
    assert (code, err) == (0, "") and f"takes x {found}; " in out


def test_a_size_that_the_program_is_bound_to_is_one_line(sparsify: Run, pruned: Path, tmp_path: Path) -> None:
    # The last layer of this network makes one pixel of 32, and torch.export takes a size of one for a constant.
    code, _, err = sparsify("export", pruned, "--out", tmp_path / "m.pt2", "--dynamic", "2:height")
    assert code == 2 and err.count("\n") == 1 and "with height=64" in err and "a larger example_input" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dims", ["height", "2-3", "0:batch;2", "0:a b"])
def test_dimensions_that_are_none_are_one_line(dims: str, sparsify: Run, pruned: Path, tmp_path: Path) -> None:
    code, _, err = sparsify("export", pruned, "--out", tmp_path / "m.pt2", "--dynamic", dims)
    assert code == 2 and err.count("\n") == 1 and "--dynamic" in err and "0:batch,2:height" in err
    assert not list(tmp_path.iterdir())


def test_import_makes_an_export_dense_again(sparsify: Run, pruned: Path, tmp_path: Path) -> None:
    for args in (["--format", "compressed-tensors", "--out", tmp_path / "ct"], ["--format", "dense", "--out", "d"]):
        place = [tmp_path / arg if arg == "d" else arg for arg in args]
        assert sparsify("export", pruned, *place).code == 0
    code, out, err = sparsify("import", tmp_path / "ct", "--out", tmp_path / "dense")
    assert (code, err) == (0, "") and "16 weights made dense, 80.0 % of their numbers are zero" in out
    found, wanted = load_file(tmp_path / "dense"), load_file(tmp_path / "d")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in found)
