"""What happens when a run is stopped, killed, or finds the disk full: in processes of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.sample]

ROOT = Path(__file__).parents[2]
ARGS = ["--model", "timm:test_resnet", "--device", "cpu", "--set", "data.batch_size=500", "--set", "train.epochs=12"]


def start(*args: object, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        # A shell without job control starts what is in the background deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-m", "cli", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit code and standard error."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def records(folder: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_killed_and_one_stopped_go_on_to_the_bits_of_one_left_alone(tmp_path: Path) -> None:
    whole = start("train", "recipes/union_mask.yaml", *ARGS, "--out", tmp_path / "whole")
    assert end(whole) == (0, "")
    for name, how, code in [("killed", signal.SIGKILL, -9), ("stopped", signal.SIGINT, 130)]:
        cut = start("train", "recipes/union_mask.yaml", *ARGS, "--out", tmp_path / name)
        wait_for(tmp_path / name / "checkpoints" / "last.safetensors", cut)
        cut.send_signal(how)
        returned, err = end(cut)
        assert returned == code, err
        assert not (tmp_path / name / "model.safetensors").exists(), "the run was over before it was cut"
        if how == signal.SIGINT:
            assert err == f"sparsify: stopped; go on with: sparsify train --resume {tmp_path / name}\n"
        again = start("train", "--resume", tmp_path / name)
        assert end(again) == (0, "")
        one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", name))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        assert records(tmp_path / "whole") == records(tmp_path / name)


def test_a_full_disk_is_one_line_and_exit_code_1_and_nothing_half_written(tmp_path: Path) -> None:
    # Files of at most 1 MB: the checkpoint of 3 MB does not fit.
    process = start("train", "recipes/union_mask.yaml", *ARGS, "--out", tmp_path / "a", limit_bytes=10**6)
    code, err = end(process)
    assert code == 1
    assert err.count("\n") == 1 and "no space left" in err and "last.safetensors" in err
    assert list((tmp_path / "a" / "checkpoints").iterdir()) == []


def test_a_loss_of_nan_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    extreme = ["--set", "train.optimizer.lr=1e30", "--set", "train.clip_grad_norm=null"]
    process = start("train", "recipes/union_mask.yaml", *ARGS, *extreme, "--out", tmp_path / "a")
    code, err = end(process)
    assert code == 1
    assert err.count("\n") == 1 and "train.optimizer.lr" in err


def test_the_installed_command_answers_from_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("sparsify")
    if not command.exists():
        pytest.skip("sparsify is not installed beside this Python")
    done = subprocess.run([command, "models", "cifar:*"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cifar:resnet20", "cifar:resnet32", "cifar:resnet56", "cifar:vgg19_bn"]
