"""Commands that write files, stopped by a signal in the middle of one."""

import os
import signal
from pathlib import Path

import pytest

from .processes import run, signal_at

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("layout", ["masks", "hub"])
def test_a_signal_leaves_no_half_of_a_file_and_the_old_one(
    pruned: Path, tmp_path: Path, layout: str, name: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if layout == "masks":
        (folder / "x").write_text("old")
    number = getattr(signal, name)
    hook = (signal_at, "sparsify.formats.io.atomic:_write_all", 2, number)
    code, err = run("export", pruned, "--format", layout, "--out", folder / "x", err=tmp_path / "err", hook=hook)
    assert (code, err.strip()) == (128 + number, "sparsify: stopped")
    assert [path.name for path in folder.iterdir()] == ["x"] * (layout == "masks")
    assert layout == "hub" or (folder / "x").read_text() == "old"
