"""`--plugin` at the command line: a run, how to go on with it, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.signals import Signals
from tests.cli.conftest import Outcome

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "my_methods.py"
RECIPE = ROOT / "recipes" / "linear_ramp.yaml"
ARGS = ["--model", "timm:test_resnet", "--device", "cpu", "--data", "stripes", "--set", "data.workers=0"]
ARGS += ["--set", "train.epochs=1", "--set", "prune.criterion=large_rows", "--set", "prune.sparsity=0.3"]
ARGS += ["--set", "prune.every=1it", "--set", "train.optimizer.lr=0.01"]
Run = Callable[..., Outcome]


def test_a_run_with_a_plugin_is_stopped_and_goes_on(
    sparsify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "asked", lambda _: True)
        code, _, err = sparsify("train", RECIPE, "--plugin", PLUGIN, *ARGS, "--out", folder)
    assert code == 130
    assert err.endswith(f"go on with: sparsify train --resume {folder} --plugin {PLUGIN}\n")
    code, _, err = sparsify("train", "--resume", folder)
    assert (code, err.count("\n")) == (2, 1) and "my_methods.py: --plugin FILE" in err
    code, out, err = sparsify("train", "--resume", folder, "--plugin", PLUGIN)
    assert (code, err) == (0, "")
    assert "stripes" in out and f"sparsify export {folder}" in out


def test_a_dry_run_takes_a_plugin(sparsify: Run, tmp_path: Path) -> None:
    code, out, err = sparsify("train", RECIPE, "--plugin", PLUGIN, *ARGS, "--dry-run", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "large_rows" in out and "stripes: 500 training and 100 test images" in out


def test_a_wrong_plugin_is_one_line(sparsify: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("CRITERIA = 1 / 0\n")
    code, _, err = sparsify("train", RECIPE, "--plugin", wrong, *ARGS)
    assert (code, err) == (2, f"sparsify: plugin {wrong}:1: ZeroDivisionError: division by zero\n")
