"""The six extensions of CONTRIBUTING.md, each made for real: what one adds, and nothing else, is written here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.datasets import DATASETS, DataSet
from sparsify.export.registry import FORMATS, Format, format_of
from sparsify.formats.request import ExportRequest, ExportResult
from sparsify.pruning.settings.prune import Pruning
from sparsify.surgery.rules.table import Rule
from sparsify.training.batches.resident import Images
from sparsify.training.data import readers

PACKAGE = Path(sparsify.__file__).parent


def test_a_criterion() -> None:
    """Weights that are far from the mean of their layer stay."""

    def unusual(weights: Mapping[str, Tensor], context: object) -> dict[str, Tensor]:
        return {name: (weight - weight.mean()).abs() for name, weight in weights.items()}

    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[5.0, 4.9, 1.0, 5.1]])
    model = nn.Sequential(layer)
    sparsify.convert(model)
    sparsify.Pruner(model, {"criterion": unusual, "sparsity": 0.75, "schedule": "one_shot"}, 1).start()
    assert model[0].weight_mask.tolist() == [[False, False, True, False]]


def test_a_schedule() -> None:
    """Half of the way at once, the other half at the end."""

    def two_strokes(progress: float, pruning: Pruning) -> float:
        return float(pruning.target) * (1.0 if progress == 1 else 0.5)

    model = nn.Sequential(nn.Linear(10, 10))
    sparsify.convert(model)
    pruner = sparsify.Pruner(model, {"sparsity": 0.8, "schedule": two_strokes, "end": 1.0}, 4)
    pruner.start()
    found = []
    for _ in range(4):
        pruner.step()
        found.append(int((~model[0].weight_mask).sum()))
    assert found == [40, 40, 40, 80]


def test_an_op_rule() -> None:
    """An operator of one's own that swaps two halves of the channels: coupled, and shrunk exactly."""
    lib = torch.library.Library("extension_test", "DEF")  # noqa: TOR901 - ends with the test
    lib.define("swap_halves(Tensor x) -> Tensor")
    lib.impl("swap_halves", lambda x: x.roll(x.shape[1] // 2, 1), "CPU")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.ops.extension_test.swap_halves(self.first(x)))  # type: ignore[no-any-return]

    # Halves swap places only while they are equally long: unit i goes with unit i + 3.
    def couple(coupling, op) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        [value], axes = op.inputs, []
        for axis in coupling.of(value):
            if axis.shape[1] > 1:
                coupling.numbers.union(axis, axis.roll(axis.shape[1] // 2, 1))
                axis = axis.roll(axis.shape[1] // 2, 1)
            axes.append(axis)
        coupling.set(op.results[0], axes)

    def flow(live, op) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        flags = live.of(op.inputs[0])
        live.set(op.results[0], flags.roll(flags.shape[1] // 2, 1))

    rules = {"extension_test::swap_halves": Rule(couple, flow)}
    model, x = Net(), torch.randn(4, 3)
    assert sparsify.analyse(model, x).groups == 0
    assert sparsify.analyse(model, x, rules=rules).groups == 3
    sparsify.convert(model, ignore=["last"])
    model.first.weight_mask[[1, 4]] = False
    model.first.bias.data[[1, 4]] = 0
    report = sparsify.shrink(model, x, rules=rules, dead="zeros")
    assert report.model.first.out_features == 4
    torch.testing.assert_close(report.model(x), model(x))


def test_an_export_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NumPy's npz: a writer and its row; the command line takes it from there."""

    def write_npz(request: ExportRequest) -> ExportResult:
        folded = sparsify.fold(request.model)
        np.savez(request.path, **{name: tensor.numpy() for name, tensor in folded.state_dict().items()})
        return ExportResult(Path(request.path), {})

    monkeypatch.setitem(FORMATS, "npz", Format(write_npz, "NumPy arrays.", suffix=".npz", trainable=False))
    model = nn.Sequential(nn.Linear(3, 2))
    sparsify.convert(model)
    model[0].weight_mask[0] = False
    path = tmp_path / "model.npz"
    assert format_of(path, None, where="save") == "npz"
    sparsify.save(model, path, format="npz")
    with np.load(path) as arrays:
        assert arrays["0.weight"][0].tolist() == [0, 0, 0]
        assert arrays["0.weight"][1].tolist() == model[0].weight[1].tolist()


def test_a_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two kinds of stripes: a reader and its row; a recipe trains on it to every image."""

    def stripes(folder: str | None) -> tuple[Images, Images]:
        labels = torch.arange(64) % 2
        pixels = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
        pixels[labels == 0, :, ::2] = 255
        pixels[labels == 1, :, :, ::2] = 255
        names = ("rows", "columns")
        return Images(pixels[:48], labels[:48], names), Images(pixels[48:], labels[48:], names)

    monkeypatch.setattr(readers, "stripes", stripes, raising=False)
    row = DataSet(2, 1, 8, 48, 16, 0, False, "training.data.readers:stripes")
    monkeypatch.setitem(DATASETS, "stripes", row)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {name: 'cifar:resnet20', arguments: {widths: [4, 8, 8]}}\n"
        "data: {name: stripes, batch_size: 16}\n"
        "train: {epochs: 12, optimizer: {lr: 0.05}}\n"
        "prune: {sparsity: 0.5, schedule: linear, end: 0.5}\n"
    )
    result = sparsify.train(sparsify.read_recipe(recipe), out=tmp_path / "run")
    assert result.metrics["test_accuracy"] == 1.0


KERNEL = """
import torch
from torch import nn
import sparsify

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
    def forward(self, x):
        return self.last(torch.square(self.first(x)))

torch.manual_seed(0)
model, x = Net().eval(), torch.randn(2, 3, 9, 9)
sparsify.convert(model)
engine = sparsify.compile(model, x)
torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
print(engine)
"""


@pytest.mark.slow
def test_a_kernel(tmp_path: Path) -> None:
    """A square as an activation of its own: a row, a function with its branch, and a lowering row, in a copy."""
    shutil.copytree(PACKAGE, tmp_path / "sparsify", ignore=shutil.ignore_patterns("__pycache__"))

    def edit(path: str, before: str, after: str) -> None:
        file = tmp_path / "sparsify" / path
        text = file.read_text()
        assert text.count(before) == 1
        file.write_text(text.replace(before, after))

    edit("runtime/kernels/opcodes.py", "    MISH = auto()\n", "    MISH = auto()\n    SQUARE = auto()\n")
    edit(
        "runtime/kernels/activations.py",
        "\n\n@njit(**FAST)\ndef apply(",
        '\n\n@njit(**FAST, inline="always")\ndef square(x, parameter):\n    return x * x\n\n\n'
        "_square = _over(square)\n\n\n@njit(**FAST)\ndef apply(",
    )
    edit(
        "runtime/kernels/activations.py",
        "        _mish(buffers, begin, count, parameter, factor)\n",
        "        _mish(buffers, begin, count, parameter, factor)\n"
        "    elif function == Activation.SQUARE:\n        _square(buffers, begin, count, parameter, factor)\n",
    )
    edit(
        "runtime/lowering/elementwise.py",
        '    aten.mish.default: function("mish"),\n',
        '    aten.mish.default: function("mish"),\n    aten.square.default: function("square"),\n'
        '    aten.pow.Tensor_Scalar: function("square"),\n',
    )
    environment = {"PYTHONPATH": str(tmp_path), "SPARSIFY_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "activation" in done.stdout
