"""The layouts of other tools are worked out by hand on small masks."""

import importlib
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def size() -> Any:
    return importlib.import_module("benchmarks.size.__main__")


MASK = np.zeros((4, 2, 3), np.bool_)
MASK.flat[[0, 9, 23]] = True


def test_csr_has_a_column_for_each_value_and_a_row_for_each_unit(size: Any) -> None:
    assert size.csr_bytes(MASK, 4) == 3 * 4 + 3 * 4 + 5 * 4


def test_a_bitmask_of_rows_pays_nine_bytes_for_each_last_dimension(size: Any) -> None:
    assert size.compressed_tensors_bytes(MASK, 2) == 3 * 2 + 8 * (1 + 8) + 3 * 8


def test_escapes_take_the_best_width(size: Any) -> None:
    # Gaps of 0, 8 and 13: 1 + 3 + 5 codes of 2 bits, 1 + 2 + 2 of 3 bits, three of 4 bits.
    assert size.escapes_bytes(MASK, 4) == 3 * 4 + 2
    assert size.escapes_bytes(np.zeros((3, 3), np.bool_), 4) == 0


def test_the_section_has_a_row_for_each_file(size: Any) -> None:
    summary = importlib.import_module("benchmarks.size.summary")
    kinds = ("limit", *summary.OURS, *summary.OTHERS)
    about = {"network": "a", "sparsity": 0.9, "write": 200.0, "read": 300.0, **dict.fromkeys(kinds, 1000)}
    rows = [about | {"scope": scope, "dtype": dtype} for scope in ("layer", "global") for dtype in size.WIDTHS]
    text = summary.summary(rows)
    assert text.count("| a | 90% | 0.001 | 1.000 |") == 4
    assert "| a | 90% | 200 | 300 | 200 | 300 |" in text
    assert "float32 1.0000 to 1.0000" in text and "write 200, read 300" in text
