"""The table of a file: hand-counted rows and totals, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparsify.export.save import TensorRow, inspect_file, save
from sparsify.formats.file.inspection import limit
from tests.formats.toys import Holder


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        mask = torch.zeros(4, 6, dtype=torch.bool)
        mask.view(-1)[torch.tensor([0, 9, 23])] = True
        self.first = Holder(torch.ones(4, 6), mask)
        self.norm = nn.BatchNorm1d(2)
        self.last = Holder(torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 3, dtype=torch.bool))
        self.again = self.last


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(Small(), tmp_path / "a", spec="timm:x", metrics={"accuracy": 0.5})
    return tmp_path / "a"


def test_rows_are_in_the_order_of_the_model(path: Path) -> None:
    rows = {row.name: row for row in inspect_file(path).rows}
    assert list(rows) == [
        "first.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "last.weight",
        "again.weight",
    ]
    assert rows["first.weight"] == TensorRow(
        "first.weight", (4, 6), "F32", "bitmask", 3, 0.875, 12 + 3, 96, bytes_limit=12 + 2
    )
    assert rows["norm.bias"] == TensorRow("norm.bias", (2,), "F32", "plain", None, None, 8, 8)
    assert rows["norm.num_batches_tracked"] == TensorRow(
        "norm.num_batches_tracked", (), "I64", "plain", None, None, 8, 8
    )
    assert rows["last.weight"] == TensorRow("last.weight", (2, 3), "F16", "full", 6, 0.0, 12, 12, bytes_limit=12)
    assert rows["again.weight"] == TensorRow(
        "again.weight", (2, 3), "F16", "alias of last.weight", 6, 0.0, 0, 12, bytes_limit=12
    )


def test_totals_count_shared_tensors_once(path: Path) -> None:
    summary = inspect_file(path)
    assert summary.path == str(path)
    assert summary.entries == 24 + 8 + 1 + 6
    assert summary.masked_entries == 30
    assert summary.kept == 9
    assert summary.sparsity == 0.7
    assert summary.bytes_file == path.stat().st_size
    assert summary.bytes_dense == 96 + 32 + 8 + 12
    assert (summary.bytes_masked, summary.bytes_limit) == (12 + 3 + 12, 12 + 2 + 12)
    assert summary.metadata.spec == "timm:x"
    assert summary.metadata.metrics == {"accuracy": 0.5}


def test_the_limit_is_kept_values_and_the_entropy_of_the_mask() -> None:
    assert limit(800, 400, 4) == 1600 + 100  # a fair coin has one bit of entropy
    assert limit(800, 800, 2) == 1600 and limit(800, 0, 2) == 0 and limit(0, 0, 4) == 0
    # H(1/4) = 1/4 * log2(4) + 3/4 * log2(4/3) = 0.811278
    assert limit(8000, 2000, 4) == pytest.approx(8000 + 811.278, abs=1e-3)


def test_a_plain_file_of_another_writer_has_its_tensors_shown(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.int8)}, tmp_path / "a")
    summary = inspect_file(tmp_path / "a")
    assert {row.name: (row.shape, row.dtype, row.encoding) for row in summary.rows} == {
        "w": ((2, 3), "F32", "plain"),
        "b": ((3,), "I8", "plain"),
    }
    assert summary.metadata.format == "plain"
    assert summary.sparsity is None
    assert summary.bytes_dense == 27


def test_an_empty_model_has_an_empty_table(tmp_path: Path) -> None:
    save(nn.Identity(), tmp_path / "a")
    summary = inspect_file(tmp_path / "a")
    assert (summary.rows, summary.entries, summary.sparsity) == ((), 0, None)


def test_inspection_imports_no_torch(path: Path) -> None:
    script = (
        "import sys\nfrom sparsify.formats.file.inspection import inspect_file\n"
        "print(inspect_file(sys.argv[1]).kept, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "9 False\n"
