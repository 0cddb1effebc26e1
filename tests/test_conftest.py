"""A test that leaves something changed fails, and those after it find it as it was."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

LEAKS = {
    "torch.set_num_threads(torch.get_num_threads() + 1)": "the number of torch's threads: ",
    "torch.set_default_dtype(torch.float64)": "the default dtype: torch.float32 -> torch.float64",
    "torch.set_default_device('meta')": "the default device: cpu -> meta",
    "torch.set_grad_enabled(False)": "gradients enabled: True -> False",
    "torch.set_autocast_enabled('cpu', True)": "autocast on the CPU: False -> True",
    "torch.use_deterministic_algorithms(True)": "deterministic algorithms: ",
    "torch.set_flush_denormal(True)": "numbers flushed to zero: False -> True",
    "torch.set_float32_matmul_precision('medium')": "the precision of products: highest -> medium",
    "torch.backends.mkldnn.set_flags(False)": "oneDNN enabled: True -> False",
    "os.environ['LEFT'] = '1'": "the environment: LEFT None -> 1",
    "os.chdir('/')": "the working directory: ",
}


@pytest.mark.slow
@pytest.mark.sample
def test_what_a_test_leaves_changed_fails_it_alone(tmp_path: Path) -> None:
    lines = ["import os", "import torch"]
    for number, leak in enumerate(LEAKS):
        lines += [f"def test_{number}_leaks():", f"    {leak}", f"def test_{number}_then():", "    pass"]
    (tmp_path / "test_leaks.py").write_text("\n".join(lines))
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    count = len(LEAKS)
    assert result.stdout.strip().splitlines()[-1].startswith(f"{2 * count} passed, {count} errors"), result.stdout
    for line in LEAKS.values():
        assert f"the test leaves changed: {line}" in result.stdout


BEGUN: list[tuple[float, float, float]] = []


@pytest.mark.parametrize("again", [False, True])
def test_each_test_begins_with_the_same_random_states(again: bool, request: pytest.FixtureRequest) -> None:
    if request.config.pluginmanager.hasplugin("randomly"):
        pytest.skip("pytest-randomly seeds each test by its name")
    BEGUN.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert len(set(BEGUN)) == 1
