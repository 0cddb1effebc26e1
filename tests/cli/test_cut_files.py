"""The commands on the file of a model that was cut smaller."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sparsify as library
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts, cuts_of
from tests.cli.conftest import Outcome
from tests.random_masks import randomly_masked

Run = Callable[..., Outcome]
GONE = (0, 3, 4, 30)
CUTS = Cuts(
    {
        "layer2.0.conv1.weight": {0: GONE},
        **{f"layer2.0.bn1.{name}": {0: GONE} for name in ("weight", "bias", "running_mean", "running_var")},
        "layer2.0.conv2.weight": {1: GONE},
    },
    {"layer2.0.conv1.out_channels": 44, "layer2.0.bn1.num_features": 44, "layer2.0.conv2.in_channels": 44},
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small network, four channels cut out, some weights masked."""
    torch.manual_seed(0)
    model = apply_cuts(library.build_model("timm:test_resnet", num_classes=10), CUTS)
    randomly_masked(model, 0.5, ignore=["layer2"])
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    library.save(model, path, spec="timm:test_resnet", arguments={"num_classes": 10})
    return path


def test_inspect_shows_the_sizes_before_and_after_the_cut(sparsify: Run, path: Path) -> None:
    code, out, err = sparsify("inspect", path)
    assert (code, err) == (0, "") and max(map(len, out.splitlines()[1:])) <= 80
    parameters = sum(tensor.numel() for tensor in library.load(path, fold=True).state_dict().values())
    gone = 4 * (32 * 9 + 4 + 48 * 9)
    assert f"cut: 6 tensors smaller, {parameters:,} of {parameters + gone:,} numbers left" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("layer")}
    assert rows["layer"] == ["shape", "cut", "from", "kept", "sparsity", "encoding"]
    assert rows["layer2.0.conv1.weight"] == ["44x32x3x3", "48x32x3x3", "12,672", "-", "plain"]
    assert rows["layer2.0.bn1.running_var"] == ["44", "48", "44", "-", "plain"]
    assert rows["layer1.0.conv1.weight"][1] == "-"
    summary = json.loads(sparsify("inspect", path, "--json").out)
    [row] = [row for row in summary["rows"] if row["name"] == "layer2.0.conv2.weight"]
    assert (row["shape"], row["original"]) == ([48, 44, 3, 3], [48, 48, 3, 3])
    assert summary["attributes"]["layer2.0.conv2.in_channels"] == 44
    assert sparsify("inspect", path, "--graph").code == 0


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_export_keeps_the_cut(sparsify: Run, path: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "b.safetensors"
    assert sparsify("export", path, "--out", out, "--format", layout).code == 0
    again, model = library.load(out), library.load(path)
    assert cuts_of(again) == CUTS and bool(library.get_masks(again)) == (layout == "sparse")
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(inputs), model(inputs))
    assert layout == "sparse" or load_file(out)["layer2.0.conv1.weight"].shape == (44, 32, 3, 3)


def test_eval_measures_the_cut_model(sparsify: Run, path: Path) -> None:
    code, out, err = sparsify("eval", path, "--data", "digits", "--device", "cpu")
    assert (code, err) == (0, "") and "on digits (297 images)" in out
