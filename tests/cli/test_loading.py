import subprocess
import sys
from pathlib import Path

from cli.view.bench_runtimes import spread_lines

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.stderr.isatty = lambda: True; from cli import main; main(sys.argv[1:])"


def test_loading_pytorch_is_said_before_it_is_loaded() -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "eval", "LICENSE"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2 and process.stderr.splitlines()[0] == "loading PyTorch …"


def test_nothing_is_said_where_pytorch_is_not_needed() -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "models", "resnet32"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0 and process.stderr == ""


def test_times_far_apart_are_told() -> None:
    quiet, busy = [1.0, 1.01, 1.02, 1.0, 1.01], [1.0, 1.9, 1.0, 2.0, 1.1]
    [line] = spread_lines({"engine": quiet, "torch": busy})
    assert line.startswith("torch: ") and "--rounds" in line
    assert spread_lines({"engine": quiet}) == []
