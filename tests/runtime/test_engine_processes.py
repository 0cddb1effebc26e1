"""Whole engines in two processes at once, their caches empty, damaged or barred: right outputs, one line a cause."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys, time, warnings
from pathlib import Path
import torch
from torch import nn
import sparsify

barrier, own = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.Hardswish(), nn.MaxPool2d(2)]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 3 * 3, 10), nn.Softmax(dim=1)).eval()
sparsify.convert(model)
sparsify.Pruner(model, {"sparsity": 0.8, "scope": "filter", "schedule": "one_shot"}, total_steps=1).start()
images = torch.randn(4, 3, 16, 16)
(barrier / own).touch()
while len(list(barrier.iterdir())) < 2:
    time.sleep(0.01)
with warnings.catch_warnings(record=True) as warned, torch.no_grad():
    warnings.simplefilter("always")
    engine = sparsify.compile(model, images)
    apart = [float((engine(x) - model(x)).abs().max() / model(x).abs().max()) for x in (images, images + 1)]
print(json.dumps({"said": [str(one.message) for one in warned], "apart": max(apart)}))
"""


def both(folder: Path) -> list[list[str]]:
    """Compile and run one model in two processes at once with caches in `folder`; return what each said."""
    barrier = folder.parent / f"barrier-{time.monotonic_ns()}"
    barrier.mkdir()
    own = {"SPARSIFY_CACHE": str(folder / "tuning"), "NUMBA_CACHE_DIR": str(folder / "kernels"), "OMP_NUM_THREADS": "1"}
    own["NUMBA_OPT"] = "0"  # compiles in a fraction of the time
    with ExitStack() as stack:
        processes = []
        for index in range(2):
            command = [sys.executable, "-c", PROGRAM, str(barrier), str(index)]
            given: dict[str, Any] = {"env": os.environ | own, "text": True}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        return [_said(process) for process in processes]


def _said(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0 and not err.strip(), err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["apart"] < 1e-5, found
    assert all("\n" not in line for line in found["said"]), found
    return list(found["said"])


def test_engines_compiled_at_once_are_right_and_mend_damaged_caches(tmp_path: Path) -> None:
    folder = tmp_path / "caches"
    folder.mkdir()
    assert both(folder) == [[], []]
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in kept) == [".json", ".nbc"]
    for path in kept:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = both(folder)  # one process may find what the other has mended
    assert any(said) and all(len(lines) <= 2 for lines in said)
    assert all("damaged" in line for lines in said for line in lines)
    assert both(folder) == [[], []]


def test_caches_that_cannot_be_written_are_a_line_each(tmp_path: Path) -> None:
    barred = tmp_path / "barred"
    barred.write_text("a file where folders should be")
    for lines in both(barred):
        kernels, tuning = sorted(lines)
        assert kernels.startswith("the compiled kernels cannot be kept")
        assert tuning.startswith("what tuning found cannot be kept")
